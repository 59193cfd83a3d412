//! Tests of when a plugin is called: a clock in milliseconds, images of two registries.

#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn image(name: &str) -> Reference {
    Reference::parse(name).unwrap()
}

fn response(cache_key_type: CacheKeyType, cache_duration: Option<u64>) -> Response {
    let credential = Credential {
        username: "u".into(),
        password: "opensesame".into(),
        identity_token: String::new(),
        registry_token: String::new(),
    };
    let cache_duration = cache_duration.map(Duration::from_millis);
    Response { cache_key_type, cache_duration, entries: vec![("r.test".into(), credential)] }
}

fn calls() -> Calls {
    Calls::new(Duration::from_millis(1_000))
}

/// What is decided: `call`, `join`, `cached`, `failed`.
fn decided(calls: &mut Calls, name: &str, now: i64) -> (&'static str, CallId) {
    match calls.decide(&image(name), now) {
        Decision::Cached(_) => ("cached", 0),
        Decision::Failed(_) => ("failed", 0),
        Decision::Join(id) => ("join", id),
        Decision::Call(id) => ("call", id),
    }
}

fn called(calls: &mut Calls, name: &str, now: i64) -> CallId {
    let (decision, id) = decided(calls, name, now);
    assert_eq!(decision, "call", "{name} at {now}");
    id
}

#[test]
fn an_answer_holds_for_its_scope_and_its_time() {
    use CacheKeyType::*;
    // Key type, the plugin's own duration, then what is decided for another image and time.
    for (key_type, own, name, now, expected) in [
        (Image, None, "r.test/a:2", 1_100, "cached"),
        (Image, None, "r.test/a:2", 1_101, "call"),
        (Image, None, "r.test/b", 101, "call"),
        (Registry, None, "r.test/b", 1_100, "cached"),
        (Registry, None, "r.test:5000/b", 101, "call"),
        (Registry, None, "s.test/b", 101, "call"),
        (Global, None, "s.test/b", 1_100, "cached"),
        (Global, None, "s.test/b", 1_101, "call"),
        (Global, Some(5_000), "s.test/b", 5_100, "cached"),
        (Global, Some(10), "s.test/b", 111, "call"),
        (Global, Some(0), "r.test/a", 100, "call"),
        (Global, Some(u64::MAX), "r.test/a", i64::MAX, "cached"),
    ] {
        let mut calls = calls();
        let id = called(&mut calls, "r.test/a:1", 0);
        calls.ended(id, Ok(response(key_type, own)), 100).unwrap();
        assert_eq!(decided(&mut calls, name, now).0, expected, "{key_type:?} {own:?} {name} {now}");
    }
    let mut never = Calls::new(Duration::ZERO);
    let id = called(&mut never, "r.test/a", 0);
    never.ended(id, Ok(response(Global, None)), 100).unwrap();
    called(&mut never, "r.test/a", 100);
}

#[test]
fn one_call_at_first_and_then_one_for_each_scope_of_its_answers() {
    use CacheKeyType::*;
    for (key_type, same_registry, other_registry) in
        [(Image, "call", "call"), (Registry, "join", "call"), (Global, "join", "join")]
    {
        let mut calls = calls();
        let first = called(&mut calls, "r.test/a", 0);
        for name in ["r.test/a", "r.test/b", "s.test/c"] {
            assert_eq!(decided(&mut calls, name, 0), ("join", first), "{name}");
        }
        calls.ended(first, Ok(response(key_type, Some(10))), 0).unwrap();
        // Expired: now it is known for what the plugin answers.
        let second = called(&mut calls, "r.test/a", 100);
        assert_eq!(decided(&mut calls, "r.test/a", 100), ("join", second));
        assert_eq!(decided(&mut calls, "r.test/b", 100).0, same_registry, "{key_type:?}");
        assert_eq!(decided(&mut calls, "s.test/c", 100).0, other_registry, "{key_type:?}");
    }
}

#[test]
fn who_waits_takes_an_answer_for_its_own_images_only() {
    let mut calls = calls();
    let id = called(&mut calls, "r.test/a", 0);
    let uncached = Ok(response(CacheKeyType::Registry, Some(0)));
    let ended = calls.ended(id, uncached, 10).unwrap();
    assert!(ended.for_image(&image("r.test/b")).unwrap().is_ok());
    assert!(ended.for_image(&image("s.test/b")).is_none());
    assert!(!format!("{ended:?}").contains("opensesame"));

    let id = called(&mut calls, "r.test/a", 20);
    let ended = calls.ended(id, Err(ProviderFailure::Exited(1)), 30).unwrap();
    let failure = ended.for_image(&image("s.test/b")).unwrap().unwrap_err();
    assert_eq!(failure, ProviderFailure::Exited(1));
}

#[test]
fn a_failure_is_remembered_for_as_long_as_its_call_took() {
    for (took, until) in [(0, 0), (500, 1_000), (60_000, 120_000), (90_000, 150_000)] {
        let mut calls = calls();
        let id = called(&mut calls, "r.test/a", 0);
        calls.ended(id, Err(ProviderFailure::TimedOut(60)), took).unwrap();
        if until > took {
            assert_eq!(decided(&mut calls, "s.test/b", until - 1).0, "failed", "{took}");
        }
        let id = called(&mut calls, "s.test/b", until);
        calls.ended(id, Ok(response(CacheKeyType::Global, None)), until).unwrap();
        assert_eq!(decided(&mut calls, "r.test/a", until).0, "cached", "it heals");
    }
}

#[test]
fn a_call_that_is_given_up_is_made_again() {
    let mut calls = calls();
    let first = called(&mut calls, "r.test/a", 0);
    calls.abandoned(first);
    let second = called(&mut calls, "r.test/a", 1);
    assert!(calls.ended(first, Err(ProviderFailure::NoAnswer), 2).is_none());
    assert_eq!(decided(&mut calls, "r.test/a", 2), ("join", second));
}

#[test]
fn the_cache_is_bounded_and_loses_what_expires_first() {
    let mut calls = Calls::new(Duration::from_secs(3_600));
    for number in 0..LONGEST_CACHE + 50 {
        let id = called(&mut calls, &format!("r.test/image-{number}"), number as i64);
        calls.ended(id, Ok(response(CacheKeyType::Image, None)), number as i64).unwrap();
    }
    assert_eq!(calls.answers.len(), LONGEST_CACHE);
    let now = (LONGEST_CACHE + 50) as i64;
    assert_eq!(decided(&mut calls, "r.test/image-49", now).0, "call");
    assert_eq!(decided(&mut calls, "r.test/image-50", now).0, "cached");
    // What has expired goes first, all of it.
    let later = 2 * 3_600_000;
    let id = called(&mut calls, "r.test/late", later);
    calls.ended(id, Ok(response(CacheKeyType::Image, None)), later).unwrap();
    assert_eq!(calls.answers.len(), 1);
}
