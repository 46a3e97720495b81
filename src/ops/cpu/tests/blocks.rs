//! How rows are cut, and threads that share a block: nobody waits for long, and no bit changes.

use super::*;
use crate::ops::Distance;

/// Rows of each block.
fn sizes(blocks: &[Range<usize>]) -> Vec<usize> {
    let mut next = 0;
    for block in blocks {
        assert_eq!(block.start, next, "rows in order");
        next = block.end;
    }
    blocks.iter().map(Range::len).collect()
}

#[test]
fn blocks_are_of_like_size() {
    for cpu in forms() {
        let two = cpu.with_threads(2);
        if cpu.isa.has_tiles(cpu.operand_number()) {
            assert_eq!(sizes(&two.blocks(40)), [32, 8], "tiles are taken whole");
            continue;
        }
        assert_eq!(sizes(&two.blocks(32)), [16, 16]);
        assert_eq!(sizes(&two.blocks(128)), [64, 64]);
        assert_eq!(sizes(&two.blocks(1024)), [171, 171, 171, 171, 171, 169]);
        // fewer rows than a tile for each thread: those who have none share the products
        assert_eq!(sizes(&two.blocks(3)), [3]);
        assert_eq!(
            sizes(&cpu.with_threads(16).blocks(13)).len(),
            13_usize.div_ceil(cpu.isa.tile_rows(Number::F32))
        );
    }
}

proptest! {
    #![proptest_config(config(64))]

    #[test]
    fn even_blocks_cost_about_the_same(
        costs in prop::collection::vec(1usize..100, 1..2000),
        threads in 1usize..5,
    ) {
        for cpu in forms() {
            let cpu = cpu.with_threads(threads);
            let blocks = cpu.even_blocks(&costs);
            prop_assert!(blocks.iter().all(|block| !block.is_empty()));
            prop_assert_eq!(sizes(&blocks).into_iter().sum::<usize>(), costs.len());
            let most = cpu.blocks(costs.len()).len();
            prop_assert!(blocks.len() <= most);
            let whole = if cpu.isa.has_tiles(cpu.operand_number()) { 16 } else { 1 };
            let share = costs.iter().sum::<usize>() / most;
            for block in blocks {
                let cost: usize = costs[block].iter().sum();
                prop_assert!(cost <= share + (1 + whole) * 100, "{cost} of {share}");
            }
        }
    }
}

/// Products and attention that are worth several threads.
#[test]
fn threads_that_share_a_block_change_no_bit() {
    let (rows, width, heads) = (70, 256, 4);
    let layer = Layer::new(width, 3 * width + 5, true, 1);
    let up = Layer::new(width, 3 * width + 5, true, 2);
    let x = rows_of(&numbers(rows * width, 3), width);
    let batch = PackedBatch::pack(&[sequence(&vec![0; rows - 30]), sequence(&[0; 30])]);
    let inputs = Inputs::of(&batch);
    let distance = Distance::Ignored;
    let spec = AttentionSpec {
        heads,
        kv_heads: 2,
        head_dim: width / heads,
        value_dim: width / heads,
        causal: true,
        window: None,
        scale: 0.1,
        distance,
        softcap: None,
    };
    let kv = numbers(rows * width / 2, 4);
    for cpu in forms() {
        let made = |threads: usize| {
            let cpu = cpu.with_threads(threads);
            let (linear, gated) = (layer.load(&cpu), layer.load_gated(&up, &cpu));
            cpu.run(|| {
                poison();
                let residual = rows_of(&numbers(rows * layer.output, 5), layer.output);
                let kv = || vec![rows_of(&kv, width / 2)];
                let of_form = cpu.batch(&inputs).unwrap();
                let memory = cpu.remember(kv(), kv(), None, &of_form, &spec).unwrap();
                let made = [
                    cpu.linear(&x, &linear),
                    cpu.linear_add(&x, &linear, residual),
                    cpu.linear_act(&x, &linear, Activation::GeluErf),
                    cpu.gated(&x, &gated, Activation::Silu),
                    cpu.attend(&x, &Which::Run(0..rows), &memory),
                ];
                made.map(|rows| bits(&values_of(&rows.unwrap())))
            })
        };
        let alone = made(1);
        for threads in [2, 3, 8] {
            assert!(made(threads) == alone, "{}, {threads} threads", cpu.name());
        }
    }
}
