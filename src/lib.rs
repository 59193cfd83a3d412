//! imagewarm warms container images on every node the moment a Knative Revision is created.
//!
//! The folders follow the flow:
//!
//! ```text
//! POST Revision ─▶ webhook ─▶ plan ─▶ cluster (POST ImageWarm per image and node)
//!                                        │ one watch
//!  controller: heal, collect, Images ────┤
//!                                        ▼
//!                    dispatch (leader) ══ one stream per node ══ warmer ─▶ runtime
//!                        │
//!                        └─▶ cluster (ImageWarm status) ─▶ controller (Image status)
//! ```
//!
//! `api`, `image` and `plan` are pure: data and decisions, no I/O and no clock. `cluster` is all
//! that talks to the API server, `runtime` all that talks to a container runtime. `webhook`,
//! `controller`, `dispatch` and `warmer` are the programs, `command` what people call, `cli` the
//! wiring.

pub mod api;
pub mod cli;
pub mod cluster;
pub mod command;
pub mod controller;
pub mod dispatch;
pub mod image;
pub mod plan;
pub mod protocol;
pub mod runtime;
pub mod settings;
pub mod telemetry;
pub mod warmer;
pub mod webhook;
pub mod wiring;
