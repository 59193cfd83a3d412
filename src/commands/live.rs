//! Follows ImageWarms until every state is final, and shows how they change.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use tokio::time::{Instant, MissedTickBehavior};

use crate::clock::wall_clock;
use crate::commands::listing::Scope;
use crate::commands::terminal::Terminal;
use imagewarm_core::api::ImageWarm;
use imagewarm_core::table::filter::Filter;
use imagewarm_core::table::images::{lines, printable, shortened, state};
use imagewarm_core::table::row::{Row, Summary};

/// Interval of updates of the view.
const TICK: Duration = Duration::from_millis(200);
/// All states must stay final for this long: a fan-out may still be creating ImageWarms.
const SETTLE: Duration = Duration::from_secs(1);
/// Rows of the live view. With header and summary it fits the smallest usual terminal: lines above
/// the screen's upper edge cannot be redrawn.
const LIVE_ROWS: usize = 18;

/// The output while following.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Screen {
    /// The view is redrawn in place.
    Terminal,
    /// One line for every change of state.
    Lines,
    /// No output.
    Silent,
}

impl Screen {
    pub(super) fn of(terminal: Terminal) -> Self {
        if terminal.is_interactive { Screen::Terminal } else { Screen::Lines }
    }
}

type Store = BTreeMap<(String, String), ImageWarm>;

/// Follows from `listed` on, and returns the ImageWarms once those that the filter keeps are final, and there is
/// one for each image that it wants.
pub(super) async fn follow(
    api: Api<ImageWarm>,
    listed: Vec<ImageWarm>,
    scope: &Scope,
    filter: &Filter,
    screen: Screen,
    out: &mut dyn Write,
) -> io::Result<Vec<ImageWarm>> {
    let mut events = pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut store: Store = listed.into_iter().map(|warm| (key(&warm), warm)).collect();
    let mut relisted = Store::new();
    let mut view = View { screen, drawn: 0, text: String::new(), printed: BTreeMap::new(), out };
    let mut settled_since: Option<Instant> = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    if store.is_empty() && screen == Screen::Lines {
        view.out.write_all(empty(scope).as_bytes())?;
    }
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Apply(warm))) => drop(store.insert(key(&warm), warm)),
                Some(Ok(Event::Delete(warm))) => drop(store.remove(&key(&warm))),
                Some(Ok(Event::Init)) => relisted.clear(),
                Some(Ok(Event::InitApply(warm))) => drop(relisted.insert(key(&warm), warm)),
                Some(Ok(Event::InitDone)) => store = std::mem::take(&mut relisted),
                // The watcher restarts by itself; until then the view shows the last known state.
                Some(Err(_)) => {}
                None => return Ok(store.into_values().collect()),
            },
            _ = tick.tick() => {
                let kept = store.values().filter(|warm| filter.keeps(warm));
                let rows = Row::from_all(kept, wall_clock());
                view.show(&rows, scope)?;
                let is_settled = !rows.is_empty()
                    && Summary::of(&rows).is_settled()
                    && filter.missing(rows.iter().map(|row| row.image.as_str())).is_empty();
                settled_since = settled_since.filter(|_| is_settled);
                if is_settled && settled_since.get_or_insert_with(Instant::now).elapsed() >= SETTLE {
                    view.erase()?;
                    return Ok(store.into_values().collect());
                }
            }
        }
    }
}

struct View<'a> {
    screen: Screen,
    /// Number of lines on the terminal that the next drawing replaces.
    drawn: usize,
    /// The text on the terminal; it is redrawn only on a change.
    text: String,
    /// States as last printed, by namespace, node and image.
    printed: BTreeMap<(String, String, String), String>,
    out: &'a mut dyn Write,
}

impl View<'_> {
    fn show(&mut self, rows: &[Row], scope: &Scope) -> io::Result<()> {
        match self.screen {
            Screen::Silent => Ok(()),
            Screen::Lines => self.print_changes(rows),
            Screen::Terminal => {
                let text = match rows {
                    [] => empty(scope),
                    rows => live_view(rows, scope.namespace.is_none()),
                };
                if text == self.text {
                    return Ok(());
                }
                self.erase()?;
                // Without line wrapping, so that the number of lines is known.
                write!(self.out, "\x1b[?7l{text}\x1b[?7h")?;
                self.drawn = text.lines().count();
                self.text = text;
                self.out.flush()
            }
        }
    }

    fn erase(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.drawn) {
            0 => Ok(()),
            lines => write!(self.out, "\x1b[{lines}A\r\x1b[J"),
        }
    }

    fn print_changes(&mut self, rows: &[Row]) -> io::Result<()> {
        for row in rows {
            let place = (row.namespace.clone(), row.node.clone(), row.image.clone());
            let state = state(row);
            if self.printed.get(&place) != Some(&state) {
                let (node, image) = (printable(&row.node), shortened(&printable(&row.image)));
                writeln!(self.out, "{}/{node}  {image}  {state}", printable(&row.namespace))?;
                self.printed.insert(place, state);
            }
        }
        self.out.flush()
    }
}

/// Rows in progress or failed first, as many as fit, and the summary.
fn live_view(rows: &[Row], namespaces: bool) -> String {
    let mut shown: Vec<&Row> = rows.iter().collect();
    if shown.len() > LIVE_ROWS {
        // Stable: preserves the order of the table within a phase.
        shown.sort_by_key(|row| row.phase);
        shown.truncate(LIVE_ROWS);
    }
    let table = lines(shown.iter().copied(), namespaces, false);
    let hidden = match rows.len() - shown.len() {
        0 => String::new(),
        more => format!("… and {more} more\n"),
    };
    format!("{table}\n{hidden}\n{}\n", Summary::of(rows).line())
}

/// The text for an empty list.
pub(super) fn empty(scope: &Scope) -> String {
    let elsewhere = match scope.namespace {
        Some(_) => "\nOther namespaces: imagewarm status -A.",
        None => "",
    };
    format!(
        "No ImageWarms {}.\n\
         A new Knative Revision (`kn service create`, or a changed Service) creates them, one for \
         each of\nits images and each node that may run it; so does an ImageWarm made by hand.{}\n",
        scope.description(),
        elsewhere
    )
}

/// Key of an object in the view and in the cache of a watch.
fn key(warm: &ImageWarm) -> (String, String) {
    (warm.namespace().unwrap_or_default(), warm.name_any())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use imagewarm_core::table::row::Phase;

    fn row(node: usize, phase: Phase, reason: &str) -> Row {
        Row { node: format!("node-{node:02}"), ..Row::sample("shop", "app:v1", phase, reason) }
    }

    #[test]
    fn an_empty_list_explains_what_creates_image_warms() {
        insta::assert_snapshot!(empty(&Scope { namespace: Some("shop".into()) }), @"
        No ImageWarms in namespace shop.
        A new Knative Revision (`kn service create`, or a changed Service) creates them, one for each of
        its images and each node that may run it; so does an ImageWarm made by hand.
        Other namespaces: imagewarm status -A.
        ");
        insta::assert_snapshot!(empty(&Scope { namespace: None }), @"
        No ImageWarms in any namespace.
        A new Knative Revision (`kn service create`, or a changed Service) creates them, one for each of
        its images and each node that may run it; so does an ImageWarm made by hand.
        ");
    }

    #[test]
    fn a_long_view_keeps_to_the_screen_and_shows_what_moves() {
        let mut rows: Vec<Row> = (0..40).map(|node| row(node, Phase::Ready, "Pulled")).collect();
        rows[33] = row(33, Phase::Pulling, "Pulling");
        rows[35] = row(35, Phase::Failed, "TimedOut");
        let text = live_view(&rows, false);
        assert!(text.lines().count() < 24, "{text}");
        let nodes: Vec<_> = text.lines().skip(1).take(3).map(|line| &line[..7]).collect();
        assert_eq!(nodes, ["node-33", "node-35", "node-00"]);
        assert!(text.contains("… and 22 more\n"), "{text}");
    }

    #[test]
    fn lines_show_each_change_once() {
        let mut out = Vec::new();
        let mut view = View {
            screen: Screen::Lines,
            drawn: 0,
            text: String::new(),
            printed: BTreeMap::new(),
            out: &mut out,
        };
        let scope = Scope { namespace: None };
        view.show(&[row(1, Phase::Pulling, "Pulling"), row(2, Phase::Waiting, "")], &scope)
            .unwrap();
        view.show(&[row(1, Phase::Pulling, "Pulling"), row(2, Phase::Waiting, "")], &scope)
            .unwrap();
        view.show(&[row(1, Phase::Ready, "Pulled")], &scope).unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @"
        shop/node-01  app:v1  Pulling
        shop/node-02  app:v1  (new)
        shop/node-01  app:v1  Pulled
        ");
    }

    #[test]
    fn a_terminal_is_drawn_over() {
        let mut out = Vec::new();
        let mut view = View {
            screen: Screen::Terminal,
            drawn: 0,
            text: String::new(),
            printed: BTreeMap::new(),
            out: &mut out,
        };
        let scope = Scope { namespace: None };
        view.show(&[row(1, Phase::Pulling, "Pulling")], &scope).unwrap();
        view.show(&[row(1, Phase::Ready, "Pulled")], &scope).unwrap();
        view.erase().unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\x1b[4A\r\x1b[J").count(), 2, "{text:?}");
        assert!(text.ends_with("\x1b[4A\r\x1b[J"), "{text:?}");
    }
}
