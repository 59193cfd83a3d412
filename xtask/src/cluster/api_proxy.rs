//! A proxy in front of the API server, for programs that shall meet faults: refused lists and
//! watches, lists that are wrongly empty, cut connections, slow answers, another API server of the same
//! cluster, and an end after exactly so many writes.
//!
//! It speaks plain HTTP on loopback and TLS to the real API server; each connection of a client has
//! one of its own there, and the client's token is passed through. Where no rule applies, nothing
//! is changed, and watches are streamed.

mod call;
mod serve;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::call::{Call, Verb};
use self::serve::Upstream;
use crate::ports::Port;
use crate::wait::wait_for;

/// What the proxy does in place of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Refuses with this status code.
    Status(u16),
    /// Lists nothing, as of now. Only for lists; other calls are passed on.
    EmptyList,
    /// Never answers.
    Silence,
}

/// Which calls get which answer.
#[derive(Clone, Debug)]
pub struct Rule {
    verbs: Vec<Verb>,
    resource: String,
    namespace: Option<String>,
    answer: Answer,
}

impl Rule {
    /// For calls with one of these verbs on a resource (plural; no subresource of it).
    pub fn new(verbs: &[Verb], resource: &str, answer: Answer) -> Self {
        let (verbs, resource) = (verbs.to_vec(), resource.to_owned());
        Self { verbs, resource, namespace: None, answer }
    }

    /// Only for calls in this namespace.
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    fn applies(&self, call: &Call) -> bool {
        self.verbs.contains(&call.verb)
            && self.resource == call.resource
            && call.subresource.is_empty()
            && self.namespace.as_ref().is_none_or(|namespace| *namespace == call.namespace)
    }
}

/// When all forwarding shall end.
#[derive(Clone, Debug)]
struct CutOff {
    verb: Verb,
    resource: String,
    calls_left: usize,
}

/// What is done with one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Forward,
    /// The client does not get to know that it was done.
    ForwardWithoutAnswer,
    Instead(Answer),
}

impl Decision {
    /// Whether it is a write that reaches the API server.
    fn counts(self, call: &Call) -> bool {
        call.verb.writes() && !matches!(self, Decision::Instead(_))
    }
}

struct State {
    rules: Vec<Rule>,
    calls: Vec<Call>,
    cut_off: Option<CutOff>,
    /// Connections of clients end with it; another takes its place.
    connections: CancellationToken,
    refusing: bool,
    /// Before each call is passed on.
    latency: Duration,
    /// The API server, for new connections.
    server: SocketAddr,
}

impl State {
    fn new(server: SocketAddr) -> Self {
        State {
            rules: Vec::new(),
            calls: Vec::new(),
            cut_off: None,
            connections: CancellationToken::new(),
            refusing: false,
            latency: Duration::ZERO,
            server,
        }
    }

    fn decide(&mut self, call: &Call) -> Decision {
        if let Some(cut_off) = &mut self.cut_off {
            if cut_off.calls_left == 0 {
                return Decision::Instead(Answer::Silence);
            }
            if cut_off.verb == call.verb && cut_off.resource == call.resource {
                cut_off.calls_left -= 1;
                if cut_off.calls_left == 0 {
                    return Decision::ForwardWithoutAnswer;
                }
            }
        }
        match self.rules.iter().find(|rule| rule.applies(call)) {
            Some(rule) => Decision::Instead(rule.answer),
            None => Decision::Forward,
        }
    }
}

struct Shared {
    state: Mutex<State>,
    upstream: Upstream,
    writes_in_flight: AtomicUsize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the call down and says what to do with it.
    fn decide(&self, call: &Call) -> Decision {
        let mut state = self.lock();
        let decision = state.decide(call);
        if decision != Decision::Instead(Answer::Silence) {
            state.calls.push(call.clone());
        }
        if decision.counts(call) {
            // Under the lock: whoever sees the cut-off reached sees this too.
            self.writes_in_flight.fetch_add(1, Ordering::SeqCst);
        }
        decision
    }

    /// Where new connections belong; `None` while they are refused.
    fn connections(&self) -> Option<CancellationToken> {
        let state = self.lock();
        (!state.refusing).then(|| state.connections.clone())
    }
}

/// A running proxy. It ends, with all its connections, when this value is dropped.
pub struct ApiProxy {
    shared: Arc<Shared>,
    port: Port,
    _running: DropGuard,
}

impl ApiProxy {
    /// Starts it on the runtime of the caller.
    pub(super) async fn start(server_url: &str, ca_pem: &str) -> Result<Self> {
        let port = Port::reserve()?;
        let listener = TcpListener::bind(port.address()).await?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State::new(address(server_url)?)),
            upstream: Upstream::new(ca_pem)?,
            writes_in_flight: AtomicUsize::new(0),
        });
        let running = CancellationToken::new();
        let serving = serve::serve(shared.clone(), listener);
        tokio::spawn(running.clone().run_until_cancelled_owned(serving));
        Ok(Self { shared, port, _running: running.drop_guard() })
    }

    /// Where it takes plain HTTP.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// From now on these rules apply; the first that fits a call decides.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        self.shared.lock().rules = rules;
    }

    /// Closes all connections, watches too. Clients may connect again at once.
    pub fn cut_connections(&self) {
        let old = std::mem::take(&mut self.shared.lock().connections);
        old.cancel();
    }

    /// Whether new connections are closed at once, as if the API server were gone.
    pub fn refuse_connections(&self, refuse: bool) {
        self.shared.lock().refusing = refuse;
    }

    /// How long each call waits from now on before it is passed on.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.lock().latency = latency;
    }

    /// From now on new connections lead to this API server; open ones stay where they are.
    pub fn send_to(&self, server_url: &str) -> Result<()> {
        self.shared.lock().server = address(server_url)?;
        Ok(())
    }

    /// All calls so far that were passed on or answered by a rule, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().calls.clone()
    }

    /// How many of these calls were writes of this resource (status included) with this verb.
    pub fn count(&self, verb: Verb, resource: &str) -> usize {
        let state = self.shared.lock();
        state.calls.iter().filter(|call| call.verb == verb && call.resource == resource).count()
    }

    /// Passes on exactly so many more calls of this kind, the last one without telling its answer;
    /// whatever comes after that, of any kind, is neither passed on nor answered.
    pub fn cut_off_after(&self, calls: usize, verb: Verb, resource: &str) {
        self.shared.lock().cut_off =
            Some(CutOff { verb, resource: resource.to_owned(), calls_left: calls });
    }

    /// Returns once the cut-off is reached and the API server has answered all that was passed on.
    pub async fn is_cut_off(&self, deadline: Duration) -> Result<()> {
        wait_for(deadline, "the last call before the cut-off", async || {
            let state = self.shared.lock();
            let reached = state.cut_off.as_ref().is_some_and(|cut_off| cut_off.calls_left == 0);
            (reached && self.shared.writes_in_flight.load(Ordering::SeqCst) == 0).then_some(())
        })
        .await
    }

    /// Ends a cut-off: closes all connections and passes everything on again.
    pub fn end_cut_off(&self) {
        self.shared.lock().cut_off = None;
        self.cut_connections();
    }
}

/// The address in `https://ADDRESS`.
fn address(server_url: &str) -> Result<SocketAddr> {
    let address = server_url.trim_start_matches("https://");
    address.parse().with_context(|| format!("the address in {server_url}"))
}
