//! Puts the parts of the two long-running programs together: what each owns, in which order it
//! starts, what makes it ready, and in which order it ends.

pub mod certificates;
mod controller;
mod own_threads;
mod warmer;

use std::io;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::exit::Exit;
use own_threads::OwnThreads;

pub use controller::{ControllerCommand, controller};
pub use warmer::{WarmerCommand, warmer};

/// How long a program may take to end after its signal.
const DRAIN: Duration = Duration::from_secs(20);

/// A program's parts, each a task. The first that ends before the signal ends the program: a half
/// program must not look alive.
struct Parts {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Parts {
    fn new() -> Self {
        Parts { tasks: JoinSet::new(), stop: CancellationToken::new() }
    }

    fn add(
        &mut self,
        name: &'static str,
        part: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, part.await) });
    }

    /// A part that only ever ends once it is stopped.
    fn spawn<F>(&mut self, name: &'static str, part: impl FnOnce(CancellationToken) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let part = part(self.stop.clone());
        self.add(name, async move {
            part.await;
            Ok(())
        });
    }

    /// The same on threads of its own: what the other parts have to do is never before it in a queue.
    ///
    /// Sockets of the part have to be made, or registered anew, inside it.
    fn add_on_own_threads(
        &mut self,
        name: &'static str,
        part: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> io::Result<()> {
        let threads = OwnThreads::start(name, part)?;
        self.add(name, async move { threads.ended().await? });
        Ok(())
    }

    /// Runs until a signal or until a part ends; then stops the others and waits for them.
    async fn run(mut self) -> anyhow::Result<Exit> {
        let ended_early = tokio::select! {
            signal = shutdown_signal() => {
                tracing::info!(signal = signal?, "stopping");
                None
            }
            ended = self.tasks.join_next() => ended,
        };
        self.stop.cancel();
        let drained = tokio::time::timeout(DRAIN, async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Ok((part, Err(error))) = ended {
                    tracing::warn!(part, error = format!("{error:#}"), "stopped with an error");
                }
            }
        });
        if drained.await.is_err() {
            tracing::warn!(seconds = DRAIN.as_secs(), "some parts did not stop in time");
        }
        match ended_early {
            None => Ok(Exit::Done),
            Some(Ok((part, Err(error)))) => Err(error.context(part)),
            Some(Ok((part, Ok(())))) => {
                tracing::error!(part, "ended unasked");
                Ok(Exit::Unexpected)
            }
            Some(Err(error)) => {
                tracing::error!(%error, "a part of the program failed");
                Ok(Exit::Unexpected)
            }
        }
    }
}

async fn shutdown_signal() -> anyhow::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part that runs until its token is cancelled.
    fn good(parts: &mut Parts) {
        let stop = parts.stop.clone();
        parts.add("good", async move {
            stop.cancelled().await;
            Ok(())
        });
    }

    #[tokio::test]
    async fn a_part_that_ends_unasked_ends_the_program() -> anyhow::Result<()> {
        let mut parts = Parts::new();
        good(&mut parts);
        parts.add("short", async { Ok(()) });
        assert_eq!(parts.run().await?, Exit::Unexpected);
        Ok(())
    }

    #[tokio::test]
    async fn a_part_on_threads_of_its_own_runs_while_all_others_are_busy() -> anyhow::Result<()> {
        let mut parts = Parts::new();
        let (asked, question) = std::sync::mpsc::channel();
        let (answer, answered) = std::sync::mpsc::channel();
        parts.add_on_own_threads("apart", async move {
            question.recv()?;
            answer.send(std::thread::current().name().map(str::to_owned))?;
            anyhow::bail!("said all")
        })?;
        // The test's only thread does not come back to its tasks before the answer is there.
        asked.send(())?;
        let name = answered.recv_timeout(Duration::from_secs(60))?;
        assert_eq!(name.as_deref(), Some("apart"));
        let error = parts.run().await.expect_err("the program ended well");
        assert_eq!(format!("{error:#}"), "apart: said all");
        Ok(())
    }

    #[tokio::test]
    async fn a_part_that_fails_is_named() {
        let mut parts = Parts::new();
        good(&mut parts);
        parts.add("bad", async { anyhow::bail!("no such luck") });
        let error = parts.run().await.expect_err("the program ended well");
        assert_eq!(format!("{error:#}"), "bad: no such luck");
    }
}
