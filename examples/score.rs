//! Scores a pair with a checkpoint, in this process and without a server: `cargo run --release --example score [DIRECTORY]`.

use std::error::Error;

use rewarm::model::variant::Loader;
use rewarm::model::variant::Mode;
use rewarm::model::variant::VariantConfig;
use rewarm::ops::batch::Sequence;
use rewarm::text::Input;
use rewarm::text::Truncation;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "deploy/demo/member-0".to_owned());
    // several directories are averaged (Mode::Warm) or asked all (Mode::Ens)
    let config = VariantConfig::new("example", Mode::Warm, vec![directory.into()]);
    let variant = Loader::default().load(&config, &mut |_, _| ())?;

    let input =
        Input::Text { prompt: "What happened today?".to_owned(), response: "I won the lottery.".to_owned() };
    let sample = variant.tokenizer.tokenize(&input, Truncation::Reject)?;
    let sequence = Sequence { token_ids: sample.token_ids, type_ids: sample.type_ids };
    let rewards = variant.scorer.score(&[&sequence], true)?; // one packed forward
    println!("{} {}", rewards[0].reward, variant.info.fingerprint);
    Ok(())
}
