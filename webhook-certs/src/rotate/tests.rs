//! Single steps by table, and long walks at irregular times.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use proptest::prelude::*;

fn names() -> Vec<String> {
    vec!["hook.ns.svc".to_owned()]
}

fn now() -> Timestamp {
    "2026-11-23T02:30:00Z".parse().unwrap()
}

fn days(days: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * days)
}

fn issued(at: Timestamp) -> Bundle {
    Bundle::issue(&names(), Lifetimes::default(), at).unwrap()
}

fn take(bundle: Bundle, at: Timestamp) -> Step {
    let found = Ok(State::settled(bundle));
    step(found, &names(), &Policy::default(), at, |_, since| Some(since)).unwrap()
}

#[test]
fn replacements_and_whether_the_ca_survives() {
    assert!(matches!(take(issued(now()), now()), Step::Keep(_)));
    type Case = (&'static str, Bundle, Timestamp, bool, Option<&'static str>);
    let foreign = Bundle { key_pem: issued(now()).key_pem, ..issued(now()) };
    let cases: [Case; 7] = [
        ("due", issued(now()), now() + days(61), true, None),
        ("expired", issued(now()), now() + days(100), true, Some("Expired")),
        ("no key", Bundle { key_pem: "".into(), ..issued(now()) }, now(), true, Some("Corrupted")),
        ("wrong key", foreign, now(), true, Some("KeyMismatch")),
        (
            "no CA key",
            Bundle { ca_key_pem: "".into(), ..issued(now()) },
            now(),
            false,
            Some("Corrupted"),
        ),
        ("CA expired", issued(now()), now() + days(3651), false, Some("Expired")),
        ("CA nearly expired", issued(now()), now() + days(3600), true, Some("Expired")),
    ];
    for (name, bundle, at, ca_survives, reason) in cases {
        let ca = bundle.ca_cert_pem.clone();
        let Step::Store { state, fault, .. } = take(bundle, at) else { panic!("{name}: kept") };
        assert_eq!(state.bundle.ca_cert_pem == ca, ca_survives, "{name}");
        assert_eq!(fault.map(|fault| fault.reason()), reason, "{name}");
        state.bundle.check(&names(), at).unwrap();
    }
    let other = vec!["other.ns.svc".to_owned()];
    let found = Ok(State::settled(issued(now())));
    let step = step(found, &other, &Policy::default(), now(), |_, _| None).unwrap();
    let Step::Store { fault: Some(fault), .. } = step else { panic!("{step:?}") };
    assert_eq!(fault.reason(), "WrongNames");
}

/// Else they would replace each other's for ever.
#[test]
fn replicas_with_clocks_two_hours_apart_keep_each_others_certificates() {
    let ahead = now() + SignedDuration::from_hours(2);
    for (issued_at, seen_at) in [(now(), ahead), (ahead, now())] {
        let step = take(issued(issued_at), seen_at);
        assert!(
            matches!(step, Step::Keep(_)),
            "issued at {issued_at}, seen at {seen_at}: {step:?}"
        );
    }
}

#[test]
fn certificates_with_a_longer_lifetime_are_replaced() {
    let minutes = SignedDuration::from_mins;
    let policy = Policy {
        lifetimes: Lifetimes { ca: days(30), serving: days(10) },
        serving_renew_before: days(5),
        ca_renew_before: days(10),
        ..Policy::default()
    };
    let step_at = |state: &State, at| {
        step(Ok(state.clone()), &names(), &policy, at, |_, since| Some(since)).unwrap()
    };
    let mut state = State::settled(issued(now()));
    let mut at = now();
    for what in ["the next CA", "it takes over", "the old CA retires"] {
        let Step::Store { state: next, fault: None, .. } = step_at(&state, at) else {
            panic!("{what}: nothing done")
        };
        (state, at) = (*next, at + minutes(61));
    }
    assert!(matches!(step_at(&state, at), Step::Keep(_)));
    let end = |pem: &str| end_of(pem).unwrap();
    assert!(end(&state.bundle.ca_cert_pem) < at + policy.lifetimes.ca);
    assert!(end(&state.bundle.cert_pem) < at + policy.lifetimes.serving);
    // A replica whose clock is behind replaces nothing.
    let made = Bundle::issue(&names(), policy.lifetimes, now()).unwrap();
    let behind = step_at(&State::settled(made), now() - minutes(30));
    assert!(matches!(behind, Step::Keep(_)), "{behind:?}");
}

#[test]
fn a_policy_without_room_for_a_rotation_is_refused() {
    assert_eq!(Policy::default().check(), Ok(()));
    let with = |twist: &dyn Fn(&mut Policy)| {
        let mut policy = Policy::default();
        twist(&mut policy);
        policy.check().unwrap_err()
    };
    assert_eq!(with(&|p| p.serving_renew_before = days(90)), PolicyError::ServingRenewal);
    assert_eq!(with(&|p| p.ca_renew_before = days(3650)), PolicyError::CaRenewal);
    assert_eq!(with(&|p| p.lifetimes.serving = days(4000)), PolicyError::CaRenewal);
    assert_eq!(with(&|p| p.retire_lag = days(180)), PolicyError::Overlap);
}

#[test]
fn an_unpublished_ca_does_not_sign_before_the_current_one_expires() {
    let late = now() + days(3500);
    let mut state = State::settled(
        issued(now()).renew(&names(), Lifetimes::default(), now() + days(3650), late).unwrap(),
    );
    let step_at = |state: &State, at| {
        step(Ok(state.clone()), &names(), &Policy::default(), at, |_, _| None).unwrap()
    };
    let Step::Store { state: next, .. } = step_at(&state, late) else { panic!("no next CA") };
    state = *next;
    assert!(state.next_certificate().is_some());
    assert!(matches!(step_at(&state, late + days(20)), Step::Keep(_)));
    let Step::Store { state: switched, fault, .. } = step_at(&state, now() + days(3651)) else {
        panic!("nothing good is served any more")
    };
    assert_eq!(fault.unwrap().reason(), "Expired");
    switched.bundle.check(&names(), now() + days(3651)).unwrap();
    assert_eq!(Some(&switched.bundle.ca_key_pem), state.next.map(|n| n.key_pem).as_ref());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// A client with an old bundle or a replica with an old certificate that lags behind by less
    /// than the configured lags receives a chain that verifies.
    #[test]
    fn every_chain_verifies_for_all_who_lag(waits in prop::collection::vec(1_i64..=8, 20..80)) {
        let seconds = SignedDuration::from_secs;
        let policy = Policy {
            lifetimes: Lifetimes { ca: seconds(200), serving: seconds(90) },
            serving_renew_before: seconds(50),
            ca_renew_before: seconds(100),
            publish_lag: seconds(20),
            retire_lag: seconds(20),
        };
        policy.check().unwrap();
        let mut at = now();
        let mut state = State::settled(Bundle::issue(&names(), policy.lifetimes, at).unwrap());
        let mut past: Vec<(Timestamp, Bundle)> = vec![(at, state.bundle.clone())];
        for wait in waits {
            at += seconds(wait);
            let stepped = step(Ok(state.clone()), &names(), &policy, at, |_, since| Some(since));
            if let Step::Store { state: next, fault, .. } = stepped.unwrap() {
                prop_assert!(fault.is_none(), "{fault:?}");
                state = *next;
                past.push((at, state.bundle.clone()));
            }
            prop_assert!(certificates(&state.bundle.ca_cert_pem).len() <= 3);
            // Each was in use until the next one.
            let recent = past.windows(2).filter(|two| two[1].0 + seconds(20) > at).map(|two| &two[0]);
            for (_, old) in recent.chain(past.last()) {
                let client = Bundle { ca_cert_pem: old.ca_cert_pem.clone(), ..state.bundle.clone() };
                let replica = Bundle { ca_cert_pem: state.bundle.ca_cert_pem.clone(), ..old.clone() };
                for pair in [client, replica] {
                    prop_assert_eq!(pair.verify_serving(&names(), at).map(drop), Ok(()));
                }
            }
        }
    }
}
