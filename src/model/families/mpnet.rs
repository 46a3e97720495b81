//! MPNet: BERT without token types, whose scores have a number for how far a key is, by head, of one table for all layers.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::blueprint::Blueprint;
use crate::model::families::blueprint::Names;
use crate::model::families::blueprint::Norms;
use crate::model::families::blueprint::QkvNames;
use crate::model::families::blueprint::head_of_two_layers;
use crate::model::families::encoder;
use crate::model::families::encoder::BERT;
use crate::model::families::encoder::BERT_NAMES;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::model::plan::RelativePlan;
use crate::model::plan::TablePlan;
use crate::ops::Activation;
use crate::ops::Buckets;
use crate::ops::Distance;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "mpnet",
    class: "MPNet",
    pad_token_id: Some(1),
    eos_token_id: Some(2),
    tokenizer: FamilyTokenizer::Unless("MPNetTokenizer"),
    nested: None,
    parse,
};

/// As many rows as the class computes with, whatever the config says of the table.
const BUCKETS: usize = 32;
/// From which distance on all take the last row.
const MAX_DISTANCE: usize = 128;

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let key = "relative_attention_num_buckets";
    let rows = fields.size(key, BUCKETS, at_most::DISTANCES)?;
    if rows < BUCKETS {
        return Err(format!("`{key}` is {rows}: transformers looks up {BUCKETS} rows whatever it says"));
    }
    let config = encoder::read(fields, &Defaults { vocab_size: 30_527, ..BERT })?;
    let (hidden, heads) = (config.hidden, config.heads);
    let buckets = buckets(BUCKETS, MAX_DISTANCE, rows);
    let mut plan = BackbonePlan::from(
        Blueprint {
            type_vocab_size: None,
            norms: Norms::of_sums("attention.LayerNorm", "output.LayerNorm"),
            distance: Distance::Biases(buckets),
            names: NAMES,
            head: head_of_two_layers(["classifier.dense", "classifier.out_proj"], hidden, Activation::Tanh),
            ..config
        }
        .counting_after(1), // whatever `pad_token_id` is
    );
    let table =
        || TablePlan { name: "encoder.relative_attention_bias.weight".to_owned(), rows, width: heads };
    for layer in &mut plan.layers {
        layer.attention.relative = Some(RelativePlan { table: table(), norm: None, key: None, query: None });
    }
    Ok(plan)
}

/// T5's: half of the buckets for keys before the query and half for those after it, of each half again half for a
/// distance each, and the others by the distance's logarithm, in the library's precision.
fn buckets(buckets: usize, max_distance: usize, rows: usize) -> Buckets {
    let of_side = buckets / 2;
    let exact = of_side / 2;
    let of_largest = (max_distance as f64 / exact as f64).ln() as f32;
    let bucket = move |distance: usize| {
        if distance < exact {
            return distance;
        }
        let beyond = (distance as f32 / exact as f32).ln() / of_largest * (of_side - exact) as f32;
        (exact + beyond as usize).min(of_side - 1)
    };
    let side = move |distance: isize| if distance < 0 { of_side } else { 0 };
    Buckets::new(rows, max_distance, move |distance| side(distance) + bucket(distance.unsigned_abs()))
}

const NAMES: Names = Names {
    prefixes: &["mpnet.", ""],
    qkv: QkvNames::Apart(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
    output: "attention.attn.o",
    ..BERT_NAMES
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows by `relative_position_bucket` of transformers 5.23, and the sum of the rows of all distances from -3000 to
    /// 3000, times how many come before them and one.
    #[test]
    fn far_distances_share_rows_as_in_transformers() {
        let buckets = buckets(BUCKETS, MAX_DISTANCE, 40);
        let rows = |distances: &[isize]| -> Vec<usize> {
            distances.iter().map(|&distance| buckets.row(distance)).collect()
        };
        assert_eq!(rows(&[-512, -128, -91, -90, -64, -9, -8, -1]), [31, 31, 31, 30, 30, 24, 24, 17]);
        assert_eq!(rows(&[0, 7, 8, 11, 12, 16, 22, 23, 31]), [0, 7, 8, 8, 9, 10, 10, 11, 11]);
        assert_eq!(rows(&[32, 46, 63, 64, 90, 91, 128, 512]), [12, 13, 13, 14, 14, 15, 15, 15]);
        let rows = (-3000..=3000).zip(1..).map(|(distance, place)| place * buckets.row(distance));
        assert_eq!(rows.sum::<usize>() % 1_000_003, 282_370);
    }

    #[test]
    fn a_table_that_is_too_small_is_refused() {
        let config = serde_json::json!({"relative_attention_num_buckets": 31});
        let problem = parse(&Fields(config.as_object().expect("an object"))).expect_err("refused");
        assert!(problem.contains("`relative_attention_num_buckets` is 31"), "{problem}");
    }
}
