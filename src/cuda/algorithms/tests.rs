use std::sync::Arc;

use super::*;
use crate::driver::Launch;
use crate::played::Kernels;
use crate::played::Play;
use crate::played::Played;
use crate::played::Shows;
use crate::played::Way;
use crate::played::Work;
use crate::played::ways;

/// No kernel is launched here.
struct Nothing;

impl Kernels for Nothing {
    fn prepare(&self, _: &str) -> Result<()> {
        Ok(())
    }

    fn launch(&self, _: &Launch<'_>) -> std::result::Result<(), String> {
        Ok(())
    }
}

const FIRST: Stream = Stream(0);

fn card(ways: Vec<Way>) -> Arc<Played> {
    Played::new(Play { ways, ..Play::new(Arc::new(Nothing)) })
}

fn shape(inputs: usize, number: Number, output: Number) -> Shape {
    let stride = inputs.next_multiple_of(8);
    let (has_bias, accumulates) = (false, false);
    Shape {
        outputs: 5,
        inputs,
        x_stride: stride,
        weight_stride: stride,
        y_stride: 8,
        number,
        output,
        has_bias,
        accumulates,
    }
}

fn scratch(card: &Played, shapes: &[Shape], rows: usize) -> Scratch {
    let bytes = scratch_bytes(shapes, rows);
    Scratch { at: card.allocate(bytes, "").expect("a played GiB"), bytes }
}

fn chosen(card: &Played, shape: &Shape, rows: usize, dir: Option<PathBuf>) -> Result<Choice> {
    let shapes = [*shape];
    let scratch = scratch(card, &shapes, rows);
    let chosen = choose(card, FIRST, &shapes, rows, scratch, dir);
    card.release(scratch.at);
    Ok(chosen?.remove(0))
}

/// The ids for these numbers of rows.
fn ids(card: &Played, choice: &Choice, rows: &[usize]) -> Vec<u8> {
    rows.iter().map(|&rows| choice.algorithm(card, rows).expect("one").0[0]).collect()
}

fn sound() -> Way {
    ways()[0]
}

#[test]
fn a_row_has_the_same_bits_whatever_the_number_of_rows() {
    for (number, output) in [
        (Number::Bf16, Number::Bf16),
        (Number::Bf16, Number::F32),
        (Number::F16, Number::F16),
        (Number::F32, Number::F32),
    ] {
        for (inputs, has_bias, accumulates) in
            [(64, false, false), (33, true, false), (257, false, true), (64, true, true)]
        {
            let card = card(ways());
            let shape = Shape { has_bias, accumulates, ..shape(inputs, number, output) };
            let choice = chosen(&card, &shape, 100, None).unwrap();
            // 13 is by far the fastest at few rows, where its bits are others.
            assert_eq!(
                ids(&card, &choice, &[1, 2, 5, 8, 9, 16, 32, 64, 100]),
                [2, 2, 2, 2, 13, 13, 13, 2, 2],
                "{shape:?}"
            );
            let bench = Bench::new(&*card, FIRST, shape, 128, scratch(&card, &[shape], 128)).unwrap();
            let bits = |rows| bench.bits(rows, choice.algorithm(&*card, rows).unwrap()).unwrap().unwrap();
            let whole = bits(100);
            for rows in 1..100 {
                let bits = bits(rows);
                assert!(same(&bits, &whole), "{rows} rows of {shape:?}");
            }
        }
    }
}

#[test]
fn a_first_offer_that_nobody_agrees_with_is_not_the_reference() {
    let odd = Way { id: 9, parts: |_, _, _| 3, nanoseconds: |_, _| 1, ..sound() };
    let card = card([vec![odd], ways()].concat());
    let choice = chosen(&card, &shape(64, Number::Bf16, Number::Bf16), 64, None).unwrap();
    assert_eq!(ids(&card, &choice, &[1, 64]), [2, 2]);
}

#[test]
fn a_class_where_nobody_agrees_takes_the_algorithm_of_another() {
    let large = Way { id: 4, is_offered: |_, rows| rows > 8, ..sound() };
    let small = Way { id: 5, is_offered: |_, rows| rows <= 8, parts: |_, _, _| 2, ..sound() };
    let card = card(vec![large, small]);
    let choice = chosen(&card, &shape(64, Number::Bf16, Number::Bf16), 64, None).unwrap();
    assert_eq!(ids(&card, &choice, &[1, 8, 9, 64]), [4, 4, 4, 4]);
}

#[test]
fn an_algorithm_that_changes_within_a_class_is_refused() {
    let turns =
        Way { id: 6, parts: |_, rows, _| if rows == 65 { 2 } else { 1 }, nanoseconds: |_, _| 1, ..sound() };
    let card = card([vec![turns], ways()].concat());
    let choice = chosen(&card, &shape(64, Number::Bf16, Number::Bf16), 96, None).unwrap();
    assert_eq!(ids(&card, &choice, &[64, 65, 96]), [6, 2, 2]);
}

#[test]
fn an_algorithm_whose_last_rows_have_other_bits_is_refused() {
    let edge = Way {
        id: 6,
        parts: |_, rows, row| if rows > 64 && row + 3 > rows { 2 } else { 1 },
        nanoseconds: |_, _| 1,
        ..sound()
    };
    let card = card([vec![edge], ways()].concat());
    for accumulates in [false, true] {
        let shape = Shape { accumulates, ..shape(64, Number::Bf16, Number::Bf16) };
        let choice = chosen(&card, &shape, 128, None).unwrap();
        assert_eq!(ids(&card, &choice, &[64, 65, 96, 128]), [6, 2, 2, 2]);
    }
}

#[test]
fn where_bits_change_with_the_row_count_one_algorithm_serves_all() {
    // As on cards of 8.9: what is offered changes its bits at 32 rows, but for two that keep to their own.
    let turns =
        Way { id: 1, parts: |_, rows, _| if rows < 32 { 2 } else { 1 }, nanoseconds: |_, _| 1, ..sound() };
    let fits_large = |_: &Shape, rows: usize| rows >= 32;
    let card = card(vec![
        Way { runs: fits_large, ..turns },
        turns,
        Way { id: 2, nanoseconds: |_, _| 2, ..turns },
        Way { id: 7, is_offered: fits_large, parts: |_, _, _| 4, nanoseconds: |_, _| 90, ..sound() },
        Way { id: 8, is_offered: |_, rows| rows < 32, parts: |_, _, _| 5, nanoseconds: |_, _| 80, ..sound() },
    ]);
    let choice = chosen(&card, &shape(64, Number::F16, Number::F16), 64, None).unwrap();
    assert_eq!(ids(&card, &choice, &[1, 31, 32, 64, 1000]), [8; 5]);
}

#[test]
fn where_none_keeps_its_bits_the_shape_is_refused() {
    let turns = Way { parts: |_, rows, _| if rows < 32 { 2 } else { 1 }, ..sound() };
    let shape = shape(64, Number::Bf16, Number::Bf16);
    for ways in [vec![turns], vec![Way { runs: |_, _| false, ..sound() }], vec![]] {
        let error = chosen(&card(ways), &shape, 64, None).unwrap_err();
        assert!(
            matches!(&error, CudaError::Unsupported(words) if words.contains("do not depend on")),
            "{error}"
        );
    }
}

#[test]
fn a_row_count_that_an_algorithm_does_not_take_gets_another() {
    let picky = Way { id: 3, runs: |_, rows| rows != 40, nanoseconds: |_, _| 1, ..sound() };
    let card = card(vec![Way { is_offered: |_, rows| rows == 64, ..picky }, sound()]);
    let choice = chosen(&card, &shape(64, Number::Bf16, Number::Bf16), 100, None).unwrap();
    assert_eq!(ids(&card, &choice, &[33, 40, 41, 64, 65]), [3, 1, 3, 3, 1]);
}

#[test]
fn a_choice_is_kept_and_checked_before_it_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let shape = shape(64, Number::Bf16, Number::Bf16);
    let choose_by = |card: &Played| {
        let choice = chosen(card, &shape, 64, Some(dir.path().to_owned())).unwrap();
        (choice, card.count(Work::Multiply))
    };
    let (first, tried) = choose_by(&card(ways()));
    let (again, checked) = choose_by(&card(ways()));
    assert_eq!((&again, checked), (&first, 7), "one run for each class");
    assert!(tried > 50, "{tried}");

    let files =
        || std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()).collect::<Vec<_>>();
    let path = files().remove(0);
    std::fs::write(&path, b"[]").unwrap();
    assert_eq!(choose_by(&card(ways())), (first.clone(), tried), "a damaged file");

    // The library says it is the same, but what was chosen sums in another order now.
    let turned = [vec![Way { id: 2, parts: |_, _, _| 2, nanoseconds: |_, _| 1, ..sound() }], ways()].concat();
    let turned: Vec<Way> = turned
        .into_iter()
        .enumerate()
        .filter(|(i, way)| *i == 0 || way.id != 2)
        .map(|(_, way)| way)
        .collect();
    let turned = card(turned);
    let (other, _) = choose_by(&turned);
    assert_eq!(ids(&turned, &other, &[1, 64]), [1, 13]);

    let mut play = Play::new(Arc::new(Nothing));
    play.card.cublaslt += 1;
    assert_eq!(choose_by(&Played::new(play)), (first, tried), "another library");
    assert_eq!(files().len(), 2);
}

#[test]
fn a_fault_ends_it_and_memory_that_is_short_tries_fewer_rows() {
    let shape = shape(64, Number::Bf16, Number::Bf16);
    for shows in [Shows::AtOnce, Shows::Later] {
        let card = card(ways());
        card.fail(Work::Multiply, 5, shows);
        assert!(matches!(chosen(&card, &shape, 64, None), Err(CudaError::Fault { .. })));
    }
    let card = card(ways());
    let short = Scratch { bytes: scratch_bytes(&[shape], 32), ..scratch(&card, &[shape], 64) };
    let choice = choose(&*card, FIRST, &[shape], 10_000, short, None).unwrap().remove(0);
    assert_eq!(choice.classes.last().unwrap().0, 32);
    assert_eq!(ids(&card, &choice, &[1, 10_000]), [2, 13]);
    let none = Scratch { bytes: 256, ..short };
    assert!(matches!(choose(&*card, FIRST, &[shape], 1, none, None), Err(CudaError::OutOfMemory { .. })));
}
