//! Checks that PromQL expressions name metrics, labels and values that exist.

use crate::Metric;

/// Labels that Prometheus adds to every series of a Pod.
const TARGET_LABELS: &[&str] = &["instance", "job", "namespace", "pod"];
/// Names of the series of a histogram, after the metric's own.
const HISTOGRAM_SERIES: &[&str] = &["_bucket", "_count", "_sum"];

/// The first metric, label or value of `text` that does not exist.
pub fn check(text: &str, metrics: &[Metric]) -> Result<(), String> {
    for (metric, matchers) in selectors(text, metrics) {
        let metric = metric?;
        for matcher in matchers.split(',').map(str::trim).filter(|it| !it.is_empty()) {
            let (label, value) =
                matcher.split_once('=').ok_or_else(|| format!("{matcher}: no ="))?;
            let label = label.trim_end_matches('!');
            if TARGET_LABELS.contains(&label) {
                continue;
            }
            let name = &metric.name;
            let known = metric.labels.iter().find(|it| it.name == label);
            let known = known.ok_or_else(|| format!("{name} has no label {label}"))?;
            let values = value.trim_start_matches('~').trim_matches('"');
            for value in values.split('|') {
                if known.values.iter().all(|(it, _)| it != value) {
                    return Err(format!("{label} of {name} is never {value:?}"));
                }
            }
        }
    }
    Ok(())
}

/// The first `$labels.x` of the templates in `text` that no series of `expression` has.
pub fn check_templates(expression: &str, text: &str, metrics: &[Metric]) -> Result<(), String> {
    let mut labels: Vec<String> = TARGET_LABELS.iter().map(|&label| label.to_owned()).collect();
    for (metric, _) in selectors(expression, metrics) {
        labels.extend(metric?.labels.iter().map(|label| label.name.clone()));
    }
    // An aggregation keeps the labels that it names, and no other.
    if let Some((_, rest)) = expression.split_once(" by (") {
        let (kept, _) = rest.split_once(')').ok_or("by ( is not closed")?;
        let kept: Vec<_> = kept.split(',').map(|label| label.trim().to_owned()).collect();
        // Of metrics that are not ours, the labels are unknown.
        if expression.contains("imagewarm_") {
            labels.retain(|label| kept.contains(label));
        } else {
            labels = kept;
        }
    }
    for used in text.split("$labels.").skip(1) {
        let end = used.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used = &used[..end.unwrap_or(used.len())];
        if labels.iter().all(|label| label != used) {
            return Err(format!("no series has the label {used}"));
        }
    }
    Ok(())
}

/// Each metric of imagewarm that `text` names, and what follows it in braces.
fn selectors<'a>(
    text: &'a str,
    metrics: &'a [Metric],
) -> impl Iterator<Item = (Result<&'a Metric, String>, &'a str)> {
    text.match_indices("imagewarm_").map(|(at, _)| {
        let rest = &text[at..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let metric = metrics.iter().find(|metric| {
            let series = || HISTOGRAM_SERIES.iter().filter_map(|series| name.strip_suffix(series));
            metric.name == name
                || metric.kind == "histogram" && series().any(|bare| bare == metric.name)
        });
        (
            metric.ok_or_else(|| format!("{name} does not exist")),
            matchers.map_or("", |(matchers, _)| matchers),
        )
    })
}

#[test]
fn what_does_not_exist_is_found() {
    let metrics = crate::all();
    for (expression, fault) in [
        ("sum(imagewarm_leading) != 1", None),
        (r#"imagewarm_image_warms{reason=~"None|Pulled"} > 0"#, None),
        (r#"rate(imagewarm_deletes_total{cause="NodeGone",pod!="a"}[5m]) > 0"#, None),
        ("imagewarm_webhook_duration_seconds_bucket", None),
        ("imagewarm_follows", Some("imagewarm_follows does not exist")),
        ("imagewarm_leading_bucket", Some("imagewarm_leading_bucket does not exist")),
        (
            r#"imagewarm_deletes_total{reason="NodeGone"}"#,
            Some("imagewarm_deletes_total has no label reason"),
        ),
        (
            r#"imagewarm_image_warms{reason=~"Pulled|Flown"}"#,
            Some(r#"reason of imagewarm_image_warms is never "Flown""#),
        ),
    ] {
        let found = check(expression, &metrics).err();
        assert_eq!(found.as_deref(), fault, "{expression}");
    }
    let faults = "imagewarm_certificate_faults_total > 0";
    assert_eq!(check_templates(faults, "{{ $labels.reason }}", &metrics), Ok(()));
    assert!(check_templates(faults, "{{ $labels.kind }}", &metrics).is_err());
    let sum = "sum by (kind) (imagewarm_repairs_total)";
    assert_eq!(check_templates(sum, "{{ $labels.kind }}", &metrics), Ok(()));
    assert!(check_templates(sum, "{{ $labels.instance }}", &metrics).is_err());
}
