//! DeBERTa-v2 and v3: far distances share rows of the table, which queries and keys may project themselves.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::at_most;
use crate::model::families::disentangled;
use crate::model::families::disentangled::DEBERTA;
use crate::model::families::disentangled::Relative;
use crate::model::families::encoder::Defaults;
use crate::model::families::parse_activation;
use crate::model::plan::BackbonePlan;
use crate::model::plan::ConvolutionPlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::NormPlan;
use crate::ops::Buckets;
use crate::ops::source::RowMap;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "deberta-v2",
    class: "DebertaV2",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("DebertaV2Tokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults =
    Defaults { vocab_size: 128_100, hidden: 1536, intermediate: 6144, num_layers: 24, heads: 24, ..DEBERTA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let config = disentangled::read(fields, &DEFAULTS)?;
    let [hidden, _] = config.widths();
    let projection = move |layer: usize, name: &str| {
        LinearPlan::new(&format!("encoder.layer.{layer}.attention.self.{name}"), hidden, hidden, true)
    };
    let relative = match config.max_distance {
        Some(max_distance) => {
            let norms: String = fields.or_default("norm_rel_ebd", "none".to_owned())?;
            let names = match fields.or_default("share_att_key", false)? {
                true => ["key_proj", "query_proj"],
                false => ["pos_key_proj", "pos_query_proj"],
            };
            Some(Relative {
                buckets: buckets(fields, max_distance)?,
                is_normed: norms.to_lowercase().split('|').any(|norm| norm.trim() == "layer_norm"),
                projections: move |layer: usize| names.map(|name| projection(layer, name)),
            })
        }
        None => None,
    };
    let qkv = |layer: usize| ["query_proj", "key_proj", "value_proj"].map(|name| projection(layer, name));
    let norm = config.norm().plan("encoder.conv.LayerNorm", hidden);
    let mut plan = config.plan(qkv, relative);
    plan.layers[0].convolution = convolution(fields, hidden, norm)?;
    Ok(plan)
}

/// Beside the first layer (v2-xlarge).
fn convolution(
    fields: &Fields<'_>,
    hidden: usize,
    norm: NormPlan,
) -> Result<Option<ConvolutionPlan>, String> {
    let kernel = fields.or_default("conv_kernel_size", 0_i64)?;
    if kernel <= 0 {
        return Ok(None);
    }
    let kernel = fields.size("conv_kernel_size", 1, at_most::DISTANCES)?;
    if kernel.is_multiple_of(2) {
        return Err(format!(
            "`conv_kernel_size` is {kernel}: transformers computes odd numbers only, as many positions before a token as \
             after it"
        ));
    }
    let groups = fields.size("conv_groups", 1, hidden)?;
    if !hidden.is_multiple_of(groups) {
        return Err(format!("`hidden_size` {hidden} is not a multiple of `conv_groups` {groups}"));
    }
    let columns = hidden / groups;
    let of_group = |group: usize| {
        let rows = RowMap::from(group * columns, hidden);
        LinearPlan::of_rows("encoder.conv.conv", rows, columns, columns * kernel, true)
    };
    let activation: String = fields.or_default("conv_act", "tanh".to_owned())?;
    Ok(Some(ConvolutionPlan {
        groups: (0..groups).map(of_group).collect(),
        kernel,
        activation: parse_activation("conv_act", &activation)?,
        norm,
    }))
}

/// Distances up to half of `position_buckets` have a row each, those beyond by their logarithm, so that the last is that
/// of `max_distance`; or all have their own, where there are no buckets.
fn buckets(fields: &Fields<'_>, max_distance: usize) -> Result<Buckets, String> {
    let span = match fields.or_default("position_buckets", -1_i64)? {
        buckets @ 1.. => buckets as usize,
        _ => {
            let row = |distance: isize| row(distance, max_distance);
            return Ok(Buckets::new(2 * max_distance, max_distance, row));
        }
    };
    // with fewer, the last of them would begin very far away
    if !(16..=at_most::DISTANCES).contains(&span) || span / 2 + 1 >= max_distance {
        return Err(format!(
            "`position_buckets` is {span}: expected a number from 16 up to twice the largest distance, {max_distance}"
        ));
    }
    let bucket = |distance: usize| bucket(distance, span / 2, max_distance);
    let reach = (span / 2..).find(|&distance| bucket(distance) >= span).unwrap_or(span);
    Ok(Buckets::new(2 * span, reach, |distance| {
        row(bucket(distance.unsigned_abs()) as isize * distance.signum(), span)
    }))
}

/// `make_log_bucket_position` of transformers, of a distance that is not negative, in its precision.
fn bucket(distance: usize, near: usize, max_distance: usize) -> usize {
    if distance <= near {
        return distance;
    }
    let of_largest = ((max_distance as f64 - 1.0) / near as f64) as f32;
    let beyond = (distance as f32 / near as f32).ln() / of_largest.ln() * (near as f32 - 1.0);
    near + beyond.ceil() as usize
}

/// Of a table with `2 · span` rows.
fn row(bucket: isize, span: usize) -> usize {
    (bucket + span as isize).clamp(0, 2 * span as isize - 1) as usize
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    fn of(position_buckets: i64, max_distance: usize) -> Result<Buckets, String> {
        let Value::Object(config) = json!({"position_buckets": position_buckets}) else { unreachable!() };
        buckets(&Fields(&config), max_distance)
    }

    /// Rows by `make_log_bucket_position` of transformers 5.23, and the sum of the rows of all distances from -3000 to
    /// 3000, times how many come before them and one.
    #[test]
    fn far_distances_share_rows_as_in_transformers() {
        for (span, max_distance, far, near, sum) in [
            (256, 512, [0, 1, 126, 127, 128, 511], [265, 276, 295, 356, 385, 463], 148_044),
            (16, 40, [0, 0, 0, 0, 0, 31], [25, 29, 31, 31, 31, 31], 799_803),
            (17, 100, [0, 0, 1, 1, 1, 33], [26, 28, 30, 33, 33, 33], 91_909),
            (32, 512, [0, 1, 6, 6, 6, 63], [41, 49, 52, 56, 58, 61], 834_560),
            (256, 1024, [43, 43, 127, 127, 128, 511], [265, 276, 295, 356, 385, 437], 437_941),
        ] {
            let buckets = of(span, max_distance).unwrap();
            assert_eq!([-512, -511, -130, -129, -128, 3000].map(|distance| buckets.row(distance)), far);
            assert_eq!([9, 20, 39, 100, 129, 300].map(|distance| buckets.row(distance)), near);
            let rows = (-3000..=3000).zip(1..).map(|(distance, place)| place * buckets.row(distance));
            assert_eq!(rows.sum::<usize>() % 1_000_003, sum, "{span} {max_distance}");
        }
        let apart = of(-1, 20).unwrap();
        assert_eq!([-21, -20, 0, 19, 20].map(|distance| apart.row(distance)), [0, 0, 20, 39, 39]);
        for (span, max_distance) in [(8, 512), (256, 129), (1 << 20, 1 << 30)] {
            assert!(of(span, max_distance).unwrap_err().contains("position_buckets"));
        }
    }
}
