//! The page that Prometheus reads, as OpenTelemetry's metrics: the same names, labels and bounds, from the same counters.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::metrics::v1::AggregationTemporality;
use opentelemetry_proto::tonic::metrics::v1::Exemplar;
use opentelemetry_proto::tonic::metrics::v1::Gauge;
use opentelemetry_proto::tonic::metrics::v1::Histogram;
use opentelemetry_proto::tonic::metrics::v1::HistogramDataPoint;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::metrics::v1::NumberDataPoint;
use opentelemetry_proto::tonic::metrics::v1::Sum;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;

use crate::service::otlp::attribute;

/// Labels of one series, by name.
pub(super) type Labels = BTreeMap<String, String>;

/// All metrics of a page. `times` are when counting began and now, in nanoseconds since 1970; `exemplar` knows one of
/// a histogram's series, where there is one.
pub(super) fn metrics(
    page: &str,
    times: (u64, u64),
    exemplar: impl Fn(&str, &Labels) -> Option<Exemplar>,
) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    let mut help = BTreeMap::new();
    let mut family: Option<Family<'_>> = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help.extend(rest.split_once(' '));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            metrics.extend(family.take().map(|family| family.finish(&help, times, &exemplar)));
            family = Some(Family { name, kind, values: Vec::new() });
        } else if let (Some(family), Some(sample)) = (&mut family, sample(line)) {
            family.values.push(sample);
        }
    }
    metrics.extend(family.map(|family| family.finish(&help, times, &exemplar)));
    metrics
}

/// A metric on the page.
struct Family<'p> {
    name: &'p str,
    kind: &'p str,
    values: Vec<Sample<'p>>,
}

/// A line of it.
struct Sample<'p> {
    name: &'p str,
    labels: Labels,
    value: f64,
}

impl Family<'_> {
    fn finish(
        self,
        help: &BTreeMap<&str, &str>,
        (start, now): (u64, u64),
        exemplar: &impl Fn(&str, &Labels) -> Option<Exemplar>,
    ) -> Metric {
        let name = self.name.to_owned();
        let cumulative = AggregationTemporality::Cumulative as i32;
        let points = |values: Vec<Sample<'_>>| {
            let point = |sample: Sample<'_>| NumberDataPoint {
                attributes: sample
                    .labels
                    .iter()
                    .map(|(name, value)| attribute(name, value.as_str()))
                    .collect(),
                start_time_unix_nano: start,
                time_unix_nano: now,
                value: Some(Value::AsDouble(sample.value)),
                ..Default::default()
            };
            values.into_iter().map(point).collect()
        };
        let data = match self.kind {
            "counter" => Data::Sum(Sum {
                data_points: points(self.values),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            "histogram" => Data::Histogram(Histogram {
                data_points: distributions(self, (start, now), exemplar),
                aggregation_temporality: cumulative,
            }),
            _ => Data::Gauge(Gauge { data_points: points(self.values) }),
        };
        let unit = match &name {
            name if name.contains("_seconds") => "s",
            name if name.contains("_bytes") => "By",
            _ => "",
        };
        let description = help.get(name.as_str()).copied().unwrap_or_default().to_owned();
        Metric { name, description, unit: unit.to_owned(), data: Some(data), ..Default::default() }
    }
}

fn distributions(
    family: Family<'_>,
    (start, now): (u64, u64),
    exemplar: &impl Fn(&str, &Labels) -> Option<Exemplar>,
) -> Vec<HistogramDataPoint> {
    let mut series: BTreeMap<Labels, (HistogramDataPoint, Vec<(f64, u64)>)> = BTreeMap::new();
    for Sample { name, mut labels, value } in family.values {
        let bound = labels.remove("le").map(|bound| bound.parse().unwrap_or(f64::INFINITY));
        let (point, buckets) = series.entry(labels).or_default();
        match name.strip_prefix(family.name) {
            Some("_bucket") => buckets.extend(bound.map(|bound| (bound, value as u64))),
            Some("_sum") => point.sum = Some(value),
            Some("_count") => point.count = value as u64,
            _ => {}
        }
    }
    let finish = |(labels, (mut point, mut buckets)): (Labels, (HistogramDataPoint, Vec<(f64, u64)>))| {
        buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut below = 0;
        for (bound, count) in buckets {
            // Prometheus counts all below a bound, OpenTelemetry those between two.
            point.bucket_counts.push(count.saturating_sub(below));
            below = count;
            if bound.is_finite() {
                point.explicit_bounds.push(bound);
            }
        }
        point.attributes = labels.iter().map(|(name, value)| attribute(name, value.as_str())).collect();
        point.exemplars = exemplar(family.name, &labels).into_iter().collect();
        (point.start_time_unix_nano, point.time_unix_nano) = (start, now);
        point
    };
    series.into_iter().map(finish).collect()
}

/// `name{label="value",..} number`.
fn sample(line: &str) -> Option<Sample<'_>> {
    let (series, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, list)) = series.split_once('{') else {
        return Some(Sample { name: series, labels: Labels::new(), value });
    };
    let mut labels = Labels::new();
    let mut rest = list.strip_suffix('}')?;
    while let Some((name, after)) = rest.split_once("=\"") {
        let (text, after) = quoted(after)?;
        labels.insert(name.trim_start_matches(',').to_owned(), text);
        rest = after;
    }
    Some(Sample { name, labels, value })
}

/// Up to the closing quotation mark, and what is behind it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((place, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &text[place + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_becomes_sums_gauges_and_histograms() {
        let page = "\
# HELP a_total Things.
# TYPE a_total counter
a_total{code=\"OK\",variant=\"w\\\"{,\\\\\"} 7

# TYPE b_seconds histogram
b_seconds_bucket{variant=\"w\",le=\"0.1\"} 2
b_seconds_bucket{variant=\"w\",le=\"+Inf\"} 5
b_seconds_bucket{variant=\"w\",le=\"0.5\"} 3
b_seconds_sum{variant=\"w\"} 4.5
b_seconds_count{variant=\"w\"} 5
# TYPE c gauge
c -1.5
";
        let found = metrics(page, (1, 2), |_, _| None);
        let names: Vec<(&str, &str)> = found.iter().map(|it| (it.name.as_str(), it.unit.as_str())).collect();
        assert_eq!(names, [("a_total", ""), ("b_seconds", "s"), ("c", "")]);
        assert_eq!(found[0].description, "Things.");
        let Some(Data::Sum(sum)) = &found[0].data else { panic!("{found:?}") };
        assert!(sum.is_monotonic && sum.data_points[0].value == Some(Value::AsDouble(7.0)));
        assert_eq!(sum.data_points[0].attributes[1], attribute("variant", "w\"{,\\"));
        let Some(Data::Histogram(histogram)) = &found[1].data else { panic!("{found:?}") };
        let [point] = &histogram.data_points[..] else { panic!("{histogram:?}") };
        assert_eq!((&point.explicit_bounds[..], &point.bucket_counts[..]), (&[0.1, 0.5][..], &[2, 1, 2][..]));
        assert_eq!((point.sum, point.count, point.attributes.len()), (Some(4.5), 5, 1));
        let Some(Data::Gauge(gauge)) = &found[2].data else { panic!("{found:?}") };
        assert_eq!(gauge.data_points[0].value, Some(Value::AsDouble(-1.5)));
    }
}
