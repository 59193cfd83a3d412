//! `imagewarm report` as text or JSON: whether warming pays. Pure.

use comfy_table::{Table, presets};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::duration::duration;
use super::images::{printable, shortened};
use crate::report::worth::{Starts, Worth};

/// The table, and what it comes to. `namespaces` adds a column.
pub fn render_worth(worth: &Worth, namespaces: bool, now: Timestamp) -> String {
    let mut header = vec![
        "REVISION",
        "IMAGE",
        "WARM",
        "COLD",
        "HITS",
        "NOT WAITED",
        "WAITED",
        "LEAD",
        "EARLIER",
    ];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header);
    for (by, starts) in &worth.rows {
        let time = |seconds: f64| if seconds > 0.0 { duration(seconds) } else { String::new() };
        let mut cells = vec![
            by.revision.as_deref().map(printable).unwrap_or_default(),
            shortened(&printable(&by.image)),
            starts.warm.to_string(),
            starts.cold.to_string(),
            starts.hit_ratio().map(percent).unwrap_or_default(),
            time(starts.saved_seconds),
            time(starts.waited_seconds),
            starts.median_lead_seconds().map(duration).unwrap_or_default(),
            starts.earlier.to_string(),
        ];
        if namespaces {
            cells.insert(0, printable(&by.namespace));
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let table = match worth.rows.is_empty() {
        true => String::new(),
        false => format!("{}\n\n", table.trim_fmt()),
    };
    format!("{table}{}{}\n", conclusion(&worth.all), window(worth.from, now))
}

/// One JSON object: `from` and `until`, `summary`, and `items` (one for each namespace, Revision and image;
/// absent is null).
pub fn render_worth_json(worth: &Worth, now: Timestamp) -> String {
    let items = worth.rows.iter().map(|(by, starts)| {
        let mut item = json!({
            "namespace": by.namespace,
            "revision": by.revision,
            "image": by.image,
        });
        if let (Value::Object(item), Value::Object(numbers)) = (&mut item, numbers(starts)) {
            item.extend(numbers);
        }
        item
    });
    let value = json!({
        "from": whole_second(worth.from).to_string(),
        "until": whole_second(now).to_string(),
        "summary": numbers(&worth.all),
        "items": items.collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

fn numbers(starts: &Starts) -> Value {
    let rounded = |number: f64| (number * 1e3).round() / 1e3;
    json!({
        "warmStarts": starts.warm,
        "coldStarts": starts.cold,
        "earlierStarts": starts.earlier,
        "hitRatio": starts.hit_ratio().map(rounded),
        "savedSeconds": rounded(starts.saved_seconds),
        "waitedSeconds": rounded(starts.waited_seconds),
        "medianLeadSeconds": starts.median_lead_seconds().map(rounded),
    })
}

/// Whether it pays, and the numbers that say so.
fn conclusion(all: &Starts) -> String {
    let (known, warm) = (all.known(), all.warm);
    let containers = if known == 1 { "container" } else { "containers" };
    let found = format!("{warm} of {known} first {containers} found the image");
    let mut text = match warm {
        _ if known == 0 => {
            "Nothing to judge by: no container was the first to need a warmed image on its node."
                .into()
        }
        _ if all.saved_seconds > 0.0 => {
            let saved = duration(all.saved_seconds);
            format!("Warming pays: {found} and did not wait for its pull, {saved} together.")
        }
        0 => format!("Warming did not help: {found}."),
        _ => format!("Warming saved nothing: {found}, which had been there before."),
    };
    if all.cold > 0 {
        let waited = duration(all.waited_seconds);
        text += &format!("\n{} waited for the kubelet's pull, {waited} together.", all.cold);
    }
    if all.earlier > 0 {
        text += &format!(
            "\n{} more found an image that had been warmed earlier; others may have used it before.",
            all.earlier
        );
    }
    text + "\n"
}

/// What the numbers are from: no more is known.
fn window(from: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(from).as_secs_f64();
    format!(
        "From kubelets' Events of the last {} (API servers keep Events for one hour by default) and the\n\
         ImageWarms of now.",
        duration(seconds)
    )
}

fn percent(ratio: f64) -> String {
    // 100 % is reserved for all.
    format!("{:.0}%", (ratio * 100.0).floor())
}

fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::report::worth::tests::{pod, start, warm};
    use crate::sample::at;

    fn render(worth: &Worth) -> String {
        render_worth(worth, false, at(4_600))
    }

    #[test]
    fn a_person_reads_whether_it_pays() {
        let warms = [warm("a", 1_010, "2.5s"), warm("b", 1_020, "12s"), warm("c", 500, "9s")];
        let starts = vec![
            start(&pod("hello-00001"), "a", 1_100, None),
            start(&pod("hello-00001"), "b", 1_240, None),
            start(&pod("hello-00001"), "c", 1_240, None),
            start("by-hand", "c", 1_300, Some(75)),
        ];
        let worth = Worth::of(starts, &warms, at(1_000));
        insta::assert_snapshot!(render_worth(&worth, true, at(4_600)), @"
        NAMESPACE  REVISION     IMAGE                     WARM  COLD  HITS  NOT WAITED  WAITED  LEAD    EARLIER
        ns                      docker.io/library/app:v1  0     1     0%                1m 15s          0
        ns         hello-00001  docker.io/library/app:v1  2     0     100%  15s                 3m 40s  1

        Warming pays: 2 of 3 first containers found the image and did not wait for its pull, 15s together.
        1 waited for the kubelet's pull, 1m 15s together.
        1 more found an image that had been warmed earlier; others may have used it before.
        From kubelets' Events of the last 1h (API servers keep Events for one hour by default) and the
        ImageWarms of now.
        ");
        let value: Value = serde_json::from_str(&render_worth_json(&worth, at(4_600))).unwrap();
        insta::assert_snapshot!(format!("{value:#}"), @r#"
        {
          "from": "1970-01-01T00:16:40Z",
          "items": [
            {
              "coldStarts": 1,
              "earlierStarts": 0,
              "hitRatio": 0.0,
              "image": "docker.io/library/app:v1",
              "medianLeadSeconds": null,
              "namespace": "ns",
              "revision": null,
              "savedSeconds": 0.0,
              "waitedSeconds": 75.0,
              "warmStarts": 0
            },
            {
              "coldStarts": 0,
              "earlierStarts": 1,
              "hitRatio": 1.0,
              "image": "docker.io/library/app:v1",
              "medianLeadSeconds": 220.0,
              "namespace": "ns",
              "revision": "hello-00001",
              "savedSeconds": 14.5,
              "waitedSeconds": 0.0,
              "warmStarts": 2
            }
          ],
          "summary": {
            "coldStarts": 1,
            "earlierStarts": 1,
            "hitRatio": 0.667,
            "medianLeadSeconds": 220.0,
            "savedSeconds": 14.5,
            "waitedSeconds": 75.0,
            "warmStarts": 2
          },
          "until": "1970-01-01T01:16:40Z"
        }
        "#);
    }

    #[test]
    fn it_says_so_where_it_does_not() {
        let warms = [warm("a", 1_010, "0s"), warm("c", 500, "9s")];
        let judge = |starts| render(&Worth::of(starts, &warms, at(1_000)));
        insta::assert_snapshot!(judge(vec![]), @"
        Nothing to judge by: no container was the first to need a warmed image on its node.
        From kubelets' Events of the last 1h (API servers keep Events for one hour by default) and the
        ImageWarms of now.
        ");
        insta::assert_snapshot!(judge(vec![start("app", "c", 1_100, None)]), @"
        REVISION  IMAGE                     WARM  COLD  HITS  NOT WAITED  WAITED  LEAD  EARLIER
                  docker.io/library/app:v1  0     0                                     1

        Nothing to judge by: no container was the first to need a warmed image on its node.
        1 more found an image that had been warmed earlier; others may have used it before.
        From kubelets' Events of the last 1h (API servers keep Events for one hour by default) and the
        ImageWarms of now.
        ");
        insta::assert_snapshot!(judge(vec![start("app", "a", 1_100, None)]), @"
        REVISION  IMAGE                     WARM  COLD  HITS  NOT WAITED  WAITED  LEAD    EARLIER
                  docker.io/library/app:v1  1     0     100%                      1m 30s  0

        Warming saved nothing: 1 of 1 first container found the image, which had been there before.
        From kubelets' Events of the last 1h (API servers keep Events for one hour by default) and the
        ImageWarms of now.
        ");
        insta::assert_snapshot!(judge(vec![start("app", "a", 1_100, Some(3))]), @"
        REVISION  IMAGE                     WARM  COLD  HITS  NOT WAITED  WAITED  LEAD  EARLIER
                  docker.io/library/app:v1  0     1     0%                3.0s          0

        Warming did not help: 0 of 1 first container found the image.
        1 waited for the kubelet's pull, 3.0s together.
        From kubelets' Events of the last 1h (API servers keep Events for one hour by default) and the
        ImageWarms of now.
        ");
    }

    #[test]
    fn all_is_only_said_of_all() {
        assert_eq!(
            (percent(1.0), percent(0.999), percent(0.0)),
            ("100%".into(), "99%".into(), "0%".into())
        );
    }
}
