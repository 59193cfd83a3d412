//! A wall clock that is set ahead or back changes the times in reports, and nothing else.

use super::*;

const HOUR_MS: i64 = 3_600_000;

type Jobs = Vec<(i64, Uid, Step)>;
type Reports = Vec<(i64, Outcome)>;

/// Three hours of one node: a registry that is unreachable, one that limits requests, and an image
/// that is removed again and again. `wall_clock` gives how far the wall clock is ahead at each
/// monotonic time. Returns each job with its start, and each report with its times.
fn run(wall_clock: impl Fn(i64) -> i64) -> (Jobs, Reports) {
    let mut queue = queue();
    for (uid, image) in [("fails", "down.test/a:1"), ("limited", "busy.test/a:1")] {
        queue.assign(assignment(uid, image), 0);
    }
    queue.assign(by_digest("removed"), 0);
    let (mut jobs, mut reports, mut now) = (vec![], vec![], 0);
    let mut present = false;
    while now < 3 * HOUR_MS {
        queue.wall_ahead_ms = wall_clock(now);
        reports.extend(queue.held_up(now).into_iter().map(|report| (now, report)));
        while let Some(job) = queue.next(now) {
            jobs.push((now, job.uid.clone(), job.step));
            let ended = match (&*job.uid, job.step) {
                ("removed", Step::CheckPresence) => {
                    let found = present
                        .then(|| PresentImage { digest: DIGEST.parse().ok(), size_bytes: 5 });
                    present = false;
                    Ended::PresenceChecked(Ok(found))
                }
                ("removed", _) => {
                    present = true;
                    Ended::Pulled(queue.at(now).unix_ms, held(true))
                }
                ("fails", _) => Ended::Pulled(0, Err(error(Reason::RegistryUnreachable))),
                _ => Ended::Pulled(0, Err(error(Reason::RateLimited))),
            };
            reports.extend(queue.ended(&job, ended, now, 0.5).map(|report| (now, report)));
        }
        let Some(next) = queue.wake_at(now) else { panic!("nothing is due after {now}") };
        assert!(next > now, "{next} is not after {now}");
        now = next;
    }
    (jobs, reports)
}

#[test]
fn a_wall_clock_that_is_set_ahead_or_back_moves_no_retry_check_or_back_off() {
    let (steady_jobs, steady_reports) = run(|_| 0);
    assert!(steady_jobs.len() > 100, "{}", steady_jobs.len());
    // Both ways: an hour ahead after one hour, and back to an hour behind after two.
    let set = |now: i64| match now / HOUR_MS {
        0 => 0,
        1 => HOUR_MS,
        _ => -HOUR_MS,
    };
    let (jobs, reports) = run(set);
    assert_eq!(jobs, steady_jobs);
    assert_eq!(reports.len(), steady_reports.len());
    for ((at, report), (_, steady)) in reports.iter().zip(&steady_reports) {
        let shown = |unix_ms: i64| if unix_ms == 0 { 0 } else { unix_ms + set(*at) };
        assert_eq!(report.finished_at_unix_ms, steady.finished_at_unix_ms + set(*at));
        assert_eq!(report.retry_at_unix_ms, shown(steady.retry_at_unix_ms), "{report:?}");
        assert_eq!((&report.reason, &report.message), (&steady.reason, &steady.message));
    }
}
