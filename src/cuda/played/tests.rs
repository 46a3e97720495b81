use std::sync::Arc;

use half::bf16;

use super::*;
use crate::driver::Argument;
use crate::driver::Number;

/// Kernels in Rust: `fill(to, value)` writes a `f32`, `spill(to, bytes)` writes a byte behind so many.
struct Toys;

#[expect(unsafe_code, reason = "kernels write to addresses")]
impl Kernels for Toys {
    fn prepare(&self, kernel: &str) -> Result<()> {
        match kernel {
            "fill" | "spill" => Ok(()),
            _ => Err(CudaError::Compile {
                kernel: kernel.to_owned(),
                log: "there is no such kernel".to_owned(),
            }),
        }
    }

    fn launch(&self, launch: &Launch<'_>) -> std::result::Result<(), String> {
        match *launch.arguments {
            // SAFETY: tests pass addresses of allocations, and guards lie behind them.
            [Argument::Address(to), Argument::F32(value)] => unsafe {
                (to.0 as *mut f32).write_unaligned(value)
            },
            // SAFETY: the same.
            [Argument::Address(to), Argument::U32(bytes)] => unsafe {
                (to.0 as *mut u8).add(bytes as usize).write(0)
            },
            _ => return Err("an illegal instruction was encountered".to_owned()),
        }
        Ok(())
    }
}

const FIRST: Stream = Stream(0);

fn card() -> Arc<Played> {
    Played::new(Play::new(Arc::new(Toys)))
}

fn fill(card: &Played, stream: Stream, to: Address, value: f32) -> Result<()> {
    let arguments = &[Argument::Address(to), Argument::F32(value)];
    card.launch(stream, &Launch { kernel: "fill", grid: [1, 1, 1], threads: 32, shared: 0, arguments })
}

fn read(card: &Played, stream: Stream, from: Address) -> Result<f32> {
    let mut bytes = [0; 4];
    card.download(stream, from, &mut bytes)?;
    Ok(f32::from_le_bytes(bytes))
}

fn is_fault<T: Debug>(answer: Result<T>, words: &str) {
    match answer {
        Err(CudaError::Fault { problem, .. }) => assert!(problem.contains(words), "{problem}"),
        other => panic!("{other:?}, not a fault of {words}"),
    }
}

#[test]
fn fresh_memory_is_nan_and_there_is_only_so_much() {
    let mut play = Play::new(Arc::new(Toys));
    play.card.memory = 1024;
    let card = Played::new(play);
    let first = card.allocate(600, "weights").unwrap();
    assert_eq!(first.0 % 256, 0);
    assert!(read(&card, FIRST, first).unwrap().is_nan());
    assert_eq!((card.free().unwrap(), card.used()), (256, 768));
    let error = card.allocate(512, "an arena").unwrap_err();
    assert_eq!(error.to_string(), "an arena takes 512 bytes on a played card, which has 256 left");
    // No fault: everything goes on.
    card.release(first);
    let second = card.allocate(1024, "an arena").unwrap();
    fill(&card, FIRST, second, 7.).unwrap();
    assert_eq!(read(&card, FIRST, second).unwrap(), 7.);
}

#[test]
fn a_stream_that_does_not_wait_for_another_reads_nan() {
    let card = card();
    let (from, to) = (card.allocate(4, "").unwrap(), card.allocate(4, "").unwrap());
    let other = card.stream().unwrap();
    card.upload(other, &3f32.to_le_bytes(), from).unwrap();
    card.copy(FIRST, from, to, 4).unwrap();
    assert!(read(&card, FIRST, to).unwrap().is_nan());
    let event = card.record(other).unwrap();
    card.wait(FIRST, &event).unwrap();
    card.copy(FIRST, from, to, 4).unwrap();
    assert_eq!(read(&card, FIRST, to).unwrap(), 3.);
}

#[test]
fn a_graph_does_on_every_replay_what_was_recorded_on_all_its_streams() {
    let card = card();
    let [a, b, c] = std::array::from_fn(|_| card.allocate(4, "").unwrap());
    let (other, elsewhere) = (card.stream().unwrap(), card.stream().unwrap());
    card.begin_capture(FIRST).unwrap();
    let fork = card.record(FIRST).unwrap();
    card.wait(other, &fork).unwrap();
    card.copy(other, a, b, 4).unwrap();
    let join = card.record(other).unwrap();
    // A stream that has nothing to do with it goes on meanwhile.
    fill(&card, elsewhere, c, 1.).unwrap();
    assert_eq!(read(&card, elsewhere, c).unwrap(), 1.);
    card.wait(FIRST, &join).unwrap();
    card.copy(FIRST, b, c, 4).unwrap();
    let graph = card.end_capture(FIRST).unwrap();
    assert!(read(&card, FIRST, b).unwrap().is_nan(), "recorded, not done");
    for value in [5., 6.] {
        fill(&card, FIRST, a, value).unwrap();
        card.replay(FIRST, &graph).unwrap();
        assert_eq!(read(&card, FIRST, c).unwrap(), value);
    }
    assert_eq!((card.count(Work::Replay), card.count(Work::Copy), card.count(Work::Launch)), (2, 2, 3));
}

#[test]
fn what_cannot_be_recorded_is_a_fault() {
    type Act = fn(&Played, Stream, Address) -> Result<()>;
    let acts: [(&str, Act); 5] = [
        ("upload", |card, _, at| card.upload(FIRST, &[0], at)),
        ("waited for", |card, _, _| card.synchronize(FIRST)),
        ("allocated", |card, _, _| card.allocate(1, "").map(drop)),
        ("does not wait for it", |card, other, at| {
            let fork = card.record(FIRST)?;
            card.wait(other, &fork)?;
            fill(card, other, at, 1.)?;
            card.end_capture(FIRST).map(drop)
        }),
        ("another recording", |card, other, _| {
            let event = card.record(other)?;
            card.wait(FIRST, &event)
        }),
    ];
    for (words, act) in acts {
        let card = card();
        let (other, at) = (card.stream().unwrap(), card.allocate(4, "").unwrap());
        card.begin_capture(FIRST).unwrap();
        is_fault(act(&card, other, at), words);
    }
}

#[test]
fn after_a_fault_everything_fails() {
    let card = card();
    let at = card.allocate(4, "").unwrap();
    let event = card.record(FIRST).unwrap();
    card.fail(Work::Launch, 1, Shows::AtOnce);
    fill(&card, FIRST, at, 1.).unwrap();
    is_fault(fill(&card, FIRST, at, 1.), "illegal memory access");
    is_fault(card.free(), "illegal");
    is_fault(card.allocate(4, ""), "illegal");
    is_fault(card.stream(), "illegal");
    is_fault(card.upload(FIRST, &[1], at), "illegal");
    is_fault(card.download(FIRST, at, &mut [0]), "illegal");
    is_fault(card.copy(FIRST, at, at, 1), "illegal");
    is_fault(card.synchronize(FIRST), "illegal");
    is_fault(card.prepare("fill"), "illegal");
    is_fault(card.elapsed(&event, &event), "illegal");
    is_fault(card.wait(FIRST, &event), "illegal");
    card.release(at);
}

#[test]
fn the_fault_of_a_kernel_shows_when_it_is_waited_for() {
    let card = card();
    let at = card.allocate(4, "").unwrap();
    card.fail(Work::Launch, 0, Shows::Later);
    fill(&card, FIRST, at, 1.).unwrap();
    is_fault(card.synchronize(FIRST), "illegal memory access");
    is_fault(fill(&card, FIRST, at, 1.), "illegal");
}

#[test]
fn whatever_leaves_its_memory_is_a_fault() {
    let spill = |card: &Played, at, bytes| {
        let arguments = &[Argument::Address(at), Argument::U32(bytes)];
        card.launch(FIRST, &Launch { kernel: "spill", grid: [1, 1, 1], threads: 1, shared: 0, arguments })?;
        card.synchronize(FIRST)
    };
    let one = card();
    let at = one.allocate(10, "").unwrap();
    spill(&one, at, 9).unwrap();
    is_fault(spill(&one, at, 10), "spill: byte 0 behind the 10");
    let one = card();
    let at = one.allocate(10, "").unwrap();
    one.upload(FIRST, &[0; 11], at).unwrap();
    is_fault(one.synchronize(FIRST), "11 bytes");
    let one = card();
    one.release(Address(4096));
    is_fault(one.free(), "was not allocated");
}

#[test]
fn a_launch_that_no_card_takes_is_a_fault() {
    for (grid, threads, shared) in
        [([0, 1, 1], 1, 0), ([1, 65_536, 1], 1, 0), ([1, 1, 1], 1025, 0), ([1; 3], 1, 1 << 20)]
    {
        let card = card();
        is_fault(
            card.launch(FIRST, &Launch { kernel: "fill", grid, threads, shared, arguments: &[] }),
            "invalid argument",
        );
    }
    let card = card();
    assert!(matches!(card.prepare("unknown"), Err(CudaError::Compile { .. })));
    card.synchronize(FIRST).unwrap();
}

#[test]
fn products_add_round_once_and_keep_to_their_strides() {
    let card = card();
    let bytes =
        |values: &[f32]| values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect::<Vec<_>>();
    let put = |values: &[f32]| {
        let at = card.allocate(2 * values.len(), "").unwrap();
        card.upload(FIRST, &bytes(values), at).unwrap();
        at
    };
    let x = put(&[1., 2., 9., 3., 4., 9.]);
    let weight = put(&[1., 0., 9., 9., 0.5, 256.]);
    let bias = put(&[1., -1.]);
    let y = put(&[10., 20., 7., 30., 40.]);
    let shape = Shape {
        outputs: 2,
        inputs: 2,
        x_stride: 3,
        weight_stride: 4,
        y_stride: 3,
        number: Number::Bf16,
        output: Number::Bf16,
        has_bias: true,
        accumulates: true,
    };
    let algorithm = &card.algorithms(&shape, 2, 1).unwrap()[0];
    card.multiply(FIRST, &Product { shape: &shape, rows: 2, x, weight, bias, y, algorithm }).unwrap();
    let mut out = [0; 10];
    card.download(FIRST, y, &mut out).unwrap();
    // 531.5 and 1064.5 become 532 and 1064: bf16 has 8 bits.
    assert_eq!(out.to_vec(), bytes(&[12., 532., 7., 34., 1064.]));
}

#[test]
fn some_ways_split_sums_and_some_do_not_run() {
    let card = card();
    let shape = Shape {
        outputs: 1,
        inputs: 64,
        x_stride: 64,
        weight_stride: 64,
        y_stride: 1,
        number: Number::F32,
        output: Number::F32,
        has_bias: false,
        accumulates: false,
    };
    let put = |values: Vec<f32>| {
        let at = card.allocate(256, "").unwrap();
        card.upload(FIRST, bytemuck::cast_slice(&values), at).unwrap();
        at
    };
    let x = put((0..64).map(|i| (i as f32).sin()).collect());
    let weight = put((0..64).map(|i| (i as f32 * 0.7).cos()).collect());
    let y = card.allocate(4, "").unwrap();
    let mut answers = Vec::new();
    for algorithm in &card.algorithms(&shape, 1, 24).unwrap() {
        let product = Product { shape: &shape, rows: 1, x, weight, bias: Address::NULL, y, algorithm };
        let (from, done) = (card.record(FIRST).unwrap(), card.multiply(FIRST, &product));
        let took = card.elapsed(&from, &card.record(FIRST).unwrap()).unwrap();
        answers.push((
            algorithm.0[0],
            done.map(|()| read(&card, FIRST, y).unwrap().to_bits()),
            took.as_nanos(),
        ));
    }
    let plain = answers[0].1.clone().unwrap();
    assert_eq!((answers[1].0, answers[1].1.clone().unwrap()), (2, plain));
    assert_eq!((answers[2].0, answers[2].2), (13, 600));
    assert_ne!(answers[2].1.clone().unwrap(), plain);
    assert!(matches!(answers[3], (66, Err(CudaError::Unsupported(_)), 0)));
}
