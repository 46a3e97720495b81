//! What others build on, held by golden files in `tests/data`. `UPDATE_GOLDEN=1 cargo test --test contract`
//! rewrites them: a difference is a change that users see, and belongs in CHANGELOG.md.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[path = "support/program.rs"]
#[expect(dead_code, reason = "each test file uses its part")]
mod program;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use program::root;
use program::run;
use program::text;
use prost::Message;
use rewarm::metrics;
use rewarm::metrics::VariantMetrics;
use rewarm::metrics::drift;

/// Compares `actual` with `tests/data/{name}`, or writes it there.
fn assert_golden(name: &str, actual: &str) {
    let path = root().join("tests/data").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).expect("write the golden file");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, golden, "{name} differs: if that is meant, run with UPDATE_GOLDEN=1");
}

/// Every metric, its type and help, and the values of its labels, as a Prometheus server would see them. Values
/// that depend on the build or the configuration are left out.
fn describe_metrics(exposition: &str) -> String {
    let mut types = BTreeMap::new();
    let mut helps = BTreeMap::new();
    let mut labels: BTreeMap<&str, BTreeMap<&str, BTreeSet<&str>>> = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.is_empty()) {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            helps.insert(name, help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            types.insert(name, kind);
        } else {
            let series = line.rsplit_once(' ').expect("a series and its value").0;
            let (name, pairs) = series.split_once('{').unwrap_or((series, ""));
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|family| types.contains_key(family))
                .unwrap_or(name);
            let labels = labels.entry(family).or_default();
            for pair in pairs.trim_end_matches('}').split(',').filter(|pair| !pair.is_empty()) {
                let (label, value) = pair.split_once('=').expect("label=\"value\"");
                labels.entry(label).or_default().insert(value.trim_matches('"'));
            }
        }
    }
    let mut text = String::new();
    for (name, kind) in types {
        text += &format!("{name} {kind}\n    {}\n", helps.get(name).expect("every metric is described"));
        for (label, values) in labels.get(name).into_iter().flatten() {
            let values = match *label {
                "agree" | "code" | "method" | "outcome" | "port" | "reason" | "result" | "stage"
                | "statistic" | "le" => {
                    let mut values: Vec<&str> = values.iter().copied().collect();
                    values.sort_by(|a, b| match (a.parse::<f64>(), b.parse::<f64>()) {
                        (Ok(a), Ok(b)) => a.total_cmp(&b),
                        _ => a.cmp(b),
                    });
                    format!("= {}", values.join(" "))
                }
                _ => String::new(),
            };
            text += format!("    {label} {values}").trim_end();
            text += "\n";
        }
    }
    text
}

#[test]
fn metrics_are_shown_at_zero_from_the_start() {
    let exporter = metrics::install();
    metrics::register_variant("ens", 2);
    let model = metrics::ModelInfo { variant: "ens".into(), fingerprint: "old".into(), ..Default::default() };
    metrics::models_served(std::slice::from_ref(&model));
    let memory = metrics::DeviceMemory { device: "cuda:0".into(), total: Some(2), left: Some(1) };
    metrics::device_memory(&[memory]);
    metrics::Shadowing { variant: "warm".into(), shadow: "ens".into() }.register("");
    let spread = Some(rewarm::values::reference::Spread { mean: 0.0, std: 1.0 });
    let reference = rewarm::values::reference::Reference {
        reward: spread,
        tokens: spread,
        length_correlation: Some(0.5),
        disagreement: spread,
        too_long: Some((0.0, 100)),
    };
    drift::watch("ens", "", reference);
    let seen = |index: u8| drift::Seen {
        reward: index.into(),
        tokens: usize::from(index / 2),
        is_truncated: false,
        reward_std: Some(1.0),
    };
    drift::seen("ens", "", "trainer", &(0..100).map(seen).collect::<Vec<_>>());
    assert_golden("metrics.txt", &describe_metrics(&exporter.render()));

    // one test function, since one process has one recorder: what is recorded comes after the golden file
    let reloaded = metrics::ModelInfo { fingerprint: "new".into(), ..model };
    metrics::models_served(&[reloaded]);
    metrics::routing_changed(&BTreeMap::from([("ens".to_owned(), 1.0), ("warm".to_owned(), 3.0)]));
    metrics::routing_changed(&BTreeMap::from([("ens".to_owned(), 1.0)]));
    metrics::request_finished(metrics::Method::Score, 8, "ens", Duration::from_millis(30));
    metrics::request_finished(metrics::Method::Score, 99, "", Duration::ZERO);
    let (old_lane, new_lane) = (VariantMetrics::new("ens", 2), VariantMetrics::new("ens", 2));
    old_lane.queue_entered(3, 30);
    new_lane.queue_entered(2, 20);
    old_lane.queue_left(3, 30);
    new_lane.member_ran(1, Duration::from_millis(250));
    new_lane.sample_scored(1.5, Some(0.25));
    new_lane.sample_scored(-2.5, Some(0.5));

    let text = exporter.render();
    for line in [
        r#"rewarm_requests_total{method="Score",code="RESOURCE_EXHAUSTED",variant="ens"} 1"#,
        r#"rewarm_requests_total{method="Score",code="UNKNOWN",variant=""} 1"#,
        r#"rewarm_request_duration_seconds_bucket{method="Score",variant="ens",le="0.05"} 1"#,
        r#"rewarm_queue_samples{variant="ens"} 2"#,
        r#"rewarm_queue_tokens{variant="ens"} 20"#,
        r#"rewarm_device_seconds_total{variant="ens",member="0"} 0"#,
        r#"rewarm_device_seconds_total{variant="ens",member="1"} 0.25"#,
        r#"rewarm_samples_total{variant="ens",outcome="scored"} 2"#,
        r#"rewarm_reward_positive_sum_total{variant="ens"} 1.5"#,
        r#"rewarm_reward_negative_sum_total{variant="ens"} 2.5"#,
        r#"rewarm_reward_std_count{variant="ens"} 2"#,
        r#"rewarm_route_weight{variant="ens"} 1"#,
        r#"rewarm_route_weight{variant="warm"} 0"#,
        r#"rewarm_model_info{variant="ens",mode="",members="0",dtype="",device="",fingerprint="old",architecture=""} 0"#,
        r#"rewarm_model_info{variant="ens",mode="",members="0",dtype="",device="",fingerprint="new",architecture=""} 1"#,
        "# TYPE rewarm_device_seconds_total counter",
    ] {
        assert!(text.lines().any(|of_text| of_text == line), "{line} is not in\n{text}");
    }
}

#[test]
fn the_manual_is_what_it_was() {
    let mut manual = String::new();
    let commands = [
        "",
        "serve",
        "init",
        "info",
        "score",
        "train",
        "merge",
        "evaluate",
        "calibrate",
        "bench",
        "bench model",
        "bench server",
        "bench group",
        "canary",
        "health",
        "completions",
        "man",
    ];
    for command in commands {
        let command: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
        let output = run(&command);
        assert!(output.status.success());
        manual.push_str(&format!("$ rewarm {}\n{}\n", command.join(" "), text(&output.stdout)));
    }
    assert_golden("help.txt", &manual);
}

#[test]
fn the_wire_contract_is_what_it_was() {
    assert_golden("proto.txt", &describe_package("rewarm.v1"));
}

#[test]
fn what_foreign_clients_speak_is_what_it_was() {
    assert_golden("inference.txt", &describe_package("inference"));
}

/// Methods, fields and values of enums; a message within a message by its own name.
fn describe_package(package: &str) -> String {
    let descriptors = prost_types::FileDescriptorSet::decode(rewarm::proto::DESCRIPTOR).unwrap();
    let mut lines = Vec::new();
    for file in descriptors.file.iter().filter(|file| file.package() == package) {
        for service in &file.service {
            for method in &service.method {
                let stream = |is_stream| if is_stream { "stream " } else { "" };
                lines.push(format!(
                    "rpc {}.{}({}{}) returns ({}{})",
                    service.name(),
                    method.name(),
                    stream(method.client_streaming()),
                    method.input_type(),
                    stream(method.server_streaming()),
                    method.output_type(),
                ));
            }
        }
        let nested = file.message_type.iter().flat_map(|message| &message.nested_type);
        for message in file.message_type.iter().chain(nested.filter(|message| !is_map_entry(message))) {
            for field in &message.field {
                lines.push(format!(
                    "{}.{} = {} {:?} {:?} {}{}",
                    message.name(),
                    field.name(),
                    field.number(),
                    field.label(),
                    field.r#type(),
                    field.type_name(),
                    if field.proto3_optional() { " optional" } else { "" },
                ));
            }
        }
        for values in &file.enum_type {
            for value in &values.value {
                lines.push(format!("{}.{} = {}", values.name(), value.name(), value.number()));
            }
        }
    }
    lines.join("\n") + "\n"
}

fn is_map_entry(message: &prost_types::DescriptorProto) -> bool {
    message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry)
}
