//! DeBERTa: distances up to a limit have a row of a table each; queries, keys and values in one tensor, by head.

use crate::checkpoint::fields::Fields;
use crate::model::families::Family;
use crate::model::families::disentangled;
use crate::model::families::disentangled::DEBERTA;
use crate::model::families::disentangled::Relative;
use crate::model::families::encoder::Defaults;
use crate::model::plan::BackbonePlan;
use crate::model::plan::LinearPlan;
use crate::model::plan::RowsPlan;
use crate::ops::Buckets;
use crate::ops::source::RowMap;
use crate::text::FamilyTokenizer;

pub(super) const FAMILY: Family = Family {
    model_type: "deberta",
    class: "Deberta",
    pad_token_id: Some(0),
    eos_token_id: None,
    tokenizer: FamilyTokenizer::Unless("DebertaTokenizer"),
    nested: None,
    parse,
};

const DEFAULTS: Defaults = Defaults { vocab_size: 50_265, ..DEBERTA };

fn parse(fields: &Fields<'_>) -> Result<BackbonePlan, String> {
    let is_no = |value: &serde_json::Value| *value == false;
    fields.refuse_unless("talking_head", is_no, "heads that talk to each other are not supported")?;
    let config = disentangled::read(fields, &DEFAULTS)?;
    let [hidden, head_dim] = config.widths();
    let qkv = move |layer: usize| {
        [("q_bias", 0), ("", 1), ("v_bias", 2)].map(|(bias, place)| {
            let of = |name: &str| format!("encoder.layer.{layer}.attention.self.{name}");
            let rows = RowMap::from(place * head_dim, 3 * hidden).in_runs(head_dim, 3 * head_dim);
            let bias = (!bias.is_empty()).then(|| RowsPlan { name: of(bias), rows: RowMap::all(hidden) });
            LinearPlan { bias, ..LinearPlan::of_rows(&of("in_proj"), rows, hidden, hidden, false) }
        })
    };
    let relative = config.max_distance.map(|max| Relative {
        buckets: Buckets::new(2 * max, max, |distance| {
            (distance + max as isize).clamp(0, 2 * max as isize - 1) as usize
        }),
        is_normed: false,
        projections: move |layer: usize| {
            [("pos_proj", false), ("pos_q_proj", true)].map(|(name, has_bias)| {
                let name = format!("encoder.layer.{layer}.attention.self.{name}");
                LinearPlan::new(&name, hidden, hidden, has_bias)
            })
        },
    });
    Ok(config.plan(qkv, relative))
}
