//! What a test changes for all tests is put back after it, whatever its end was: each fixture that
//! changes something shared registers here how it is put back, and the runner does it. A test has
//! nothing to put back, and cannot forget it.

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

type Action = Box<dyn FnOnce() -> LocalBoxFuture<'static, Result<()>>>;

/// The actions of one test. Clones are of the same test.
#[derive(Clone, Default)]
pub struct Undo(Rc<RefCell<Vec<(String, Action)>>>);

impl Undo {
    /// Registers how `what` is put back. An action finds out itself whether there is anything left
    /// to do, as the test may have put it back; for the same `what` only the first one counts.
    /// Register before the change, so that half a change is put back as well.
    pub fn register<F>(&self, what: &str, action: impl FnOnce() -> F + 'static)
    where
        F: Future<Output = Result<()>> + 'static,
    {
        let mut actions = self.0.borrow_mut();
        if !actions.iter().any(|(registered, _)| registered == what) {
            actions.push((what.to_owned(), Box::new(move || action().boxed_local())));
        }
    }

    /// Puts everything back, the last change first. One that fails does not keep the others from it.
    pub async fn run(&self) -> Result<()> {
        let mut failures = vec![];
        loop {
            let Some((what, action)) = self.0.borrow_mut().pop() else { break };
            let done = AssertUnwindSafe(async { action().await }).catch_unwind().await;
            if let Err(error) = done.unwrap_or_else(|_| bail!("panicked")).context(what) {
                failures.push(format!("{error:#}"));
            }
        }
        match failures.as_slice() {
            [] => Ok(()),
            _ => bail!("not put back: {}", failures.join("; ")),
        }
    }
}
