//! What the warmer promises, shown with every runtime: the same cases for dockerd, two versions of
//! containerd and CRI-O, each real. Each runtime has one node; cases run side by side on it, but
//! those that take its runtime or its warmer away run alone there.

mod credentials;
mod failures;
mod faults;
mod interruptions;
mod plugins;
mod providers;
mod pulls;
mod stage;

use std::sync::Arc;

use anyhow::Result;
use futures::future::LocalBoxFuture;

use crate::world::{System, World};
pub use stage::{Conformance, RuntimeKind, Stage};

/// A case: gets the node of one runtime, and returns what was wrong.
type Case = for<'a> fn(&'a Stage<'a>) -> LocalBoxFuture<'a, Result<()>>;

/// With whom a case shares its node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Together,
    Alone,
}

/// Pairs each async function with its name and turn.
macro_rules! cases {
    ($turn:ident: $($name:ident),+ $(,)?) => {
        &[$((stringify!($name), crate::conformance::Turn::$turn, |stage| Box::pin($name(stage))),)+]
    };
}
use cases;

/// One file's cases.
type Cases = &'static [(&'static str, Turn, Case)];

/// Everything that is to be run, in order: `conformance::RUNTIME::CASE`.
pub fn all() -> impl Iterator<Item = (String, Trial)> {
    // Those that wait longest begin first.
    let cases: [Cases; 6] = [
        providers::CASES,
        faults::CASES,
        pulls::CASES,
        credentials::CASES,
        failures::CASES,
        interruptions::CASES,
    ];
    cases.into_iter().flatten().flat_map(|(name, turn, case)| {
        RuntimeKind::ALL.into_iter().map(move |runtime| {
            let name = format!("conformance::{}::{name}", runtime.name());
            (name, Trial { runtime, turn: *turn, case: *case })
        })
    })
}

/// One case with one runtime.
#[derive(Clone, Copy)]
pub struct Trial {
    runtime: RuntimeKind,
    turn: Turn,
    case: Case,
}

impl Trial {
    pub async fn run(self, system: &Arc<System>) -> Result<()> {
        let conformance = system.shared::<Conformance>();
        let turns = conformance.turns(self.runtime);
        let case = async |world: &World| {
            let stage = Stage::enter(world, self.runtime).await?;
            (self.case)(&stage).await
        };
        match self.turn {
            Turn::Together => {
                let _turn = turns.read().await;
                World::run(system, case).await
            }
            Turn::Alone => {
                let _turn = turns.write().await;
                World::run(system, case).await
            }
        }
    }
}
