//! Progress lines of steps that take minutes: what is done, about how long it takes, how long it
//! has taken so far. Whole lines on standard error, the same on a terminal and in a log.

use std::time::Duration;

use anyhow::Result;
use tokio::time::{Instant, interval_at};

/// How often a running step says so.
const INTERVAL: Duration = Duration::from_secs(30);

/// A step as its progress lines name it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What it does, such as `building`.
    pub verb: &'static str,
    /// The same once it is done, such as `built`.
    pub past: &'static str,
    /// To what, such as `kube-apiserver v1.36.3`.
    pub what: String,
    /// How long it takes the first time, on two cores that the other first steps share.
    pub about: Duration,
}

impl Step {
    /// Runs `work`, with a line before it, every half minute, and once it has succeeded.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        eprintln!("{}", self.begins());
        let start = Instant::now();
        let mut ticks = interval_at(start + INTERVAL, INTERVAL);
        tokio::pin!(work);
        loop {
            tokio::select! {
                outcome = &mut work => {
                    if outcome.is_ok() {
                        eprintln!("{}", self.is_done(start.elapsed()));
                    }
                    return outcome;
                }
                _ = ticks.tick() => eprintln!("{}", self.goes_on(start.elapsed())),
            }
        }
    }

    fn begins(&self) -> String {
        format!("{} {} (about {} the first time)", self.verb, self.what, span(self.about))
    }

    fn goes_on(&self, elapsed: Duration) -> String {
        let so_far = match elapsed > self.about {
            false => format!("{} of about {}", span(elapsed), span(self.about)),
            true => format!("{}, more than the usual {}", span(elapsed), span(self.about)),
        };
        format!("still {} {} ({so_far})", self.verb, self.what)
    }

    fn is_done(&self, elapsed: Duration) -> String {
        format!("{} {} in {}", self.past, self.what, span(elapsed))
    }
}

/// A time for people, such as `2 min 30 s`.
pub fn span(time: Duration) -> String {
    match (time.as_secs() / 60, time.as_secs() % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_the_step_and_its_times() {
        let step = Step {
            verb: "building",
            past: "built",
            what: "kube-apiserver v1".to_owned(),
            about: Duration::from_secs(300),
        };
        assert_eq!(step.begins(), "building kube-apiserver v1 (about 5 min the first time)");
        let table = [
            (30, "still building kube-apiserver v1 (30 s of about 5 min)"),
            (150, "still building kube-apiserver v1 (2 min 30 s of about 5 min)"),
            (300, "still building kube-apiserver v1 (5 min of about 5 min)"),
            (330, "still building kube-apiserver v1 (5 min 30 s, more than the usual 5 min)"),
        ];
        for (seconds, line) in table {
            assert_eq!(step.goes_on(Duration::from_secs(seconds)), line);
        }
        let done = step.is_done(Duration::from_millis(292_900));
        assert_eq!(done, "built kube-apiserver v1 in 4 min 52 s");
        assert_eq!(step.is_done(Duration::ZERO), "built kube-apiserver v1 in 0 s");
    }

    #[tokio::test]
    async fn the_outcome_of_the_work_is_the_steps_own() {
        let step =
            Step { verb: "a", past: "b", what: "c".to_owned(), about: Duration::from_secs(1) };
        assert_eq!(step.run(async { Ok(7) }).await.ok(), Some(7));
        let failed = step.run(async { anyhow::bail!("no compiler") }).await.map(|(): ()| ());
        assert_eq!(failed.err().map(|error| error.to_string()).as_deref(), Some("no compiler"));
    }
}
