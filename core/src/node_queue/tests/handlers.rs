//! Images for the runtime handlers of their Pods.

use super::*;

fn with_handlers(uid: &str, image: &str, handlers: &[&str]) -> Assign {
    let runtime_handlers = handlers.iter().map(|&handler| handler.to_owned()).collect();
    Assign { namespace: "team".into(), runtime_handlers, ..assignment(uid, image) }
}

fn handlers_of(job: &Job) -> Vec<&str> {
    job.sandboxes.runtime_handlers.iter().map(String::as_str).collect()
}

#[test]
fn a_job_has_the_namespace_and_the_handlers_of_its_pods() {
    let mut queue = queue();
    queue.assign(with_handlers("plain", "r.test/plain:v1", &[]), 0);
    let job = queue.next(0).unwrap();
    assert_eq!((job.sandboxes.namespace.as_str(), handlers_of(&job)), ("team", vec![""]));
    queue.assign(with_handlers("both", "r.test/both:v1", &["", "kata"]), 0);
    assert_eq!(handlers_of(&queue.next(0).unwrap()), ["", "kata"]);
}

#[test]
fn another_handler_requires_the_image_again_and_fewer_do_not() {
    for image in ["r.test/app:v1".to_owned(), format!("r.test/app@{DIGEST}")] {
        let mut queue = queue();
        queue.assign(with_handlers("a", &image, &[]), 0);
        while let Some(job) = queue.next(0) {
            let ended = match job.step {
                Step::CheckPresence => Ended::PresenceChecked(Ok(None)),
                _ => Ended::Pulled(0, held(true)),
            };
            queue.ended(&job, ended, 0, 0.5);
        }
        assert!(queue.next(1).is_none(), "{image}: it is there");
        // The leader believes it present, for the handlers before.
        let more = with_handlers("a", &image, &["", "kata"]);
        queue.assign(Assign { believed_present: true, ..more.clone() }, 1);
        let mut job = queue.next(1).unwrap();
        assert_eq!(handlers_of(&job), ["", "kata"]);
        if job.step == Step::CheckPresence {
            // For the other handler it is not: it has not been removed, and is pulled at once.
            let report = queue.ended(&job, Ended::PresenceChecked(Ok(None)), 1, 0.5);
            assert_eq!(report, None, "{image}");
            job = queue.next(1).unwrap();
        }
        assert_eq!(job.step, Step::Pull);
        let report = queue.ended(&job, Ended::Pulled(1, held(true)), 1, 0.5).unwrap();
        assert!(report.present);
        // What is there for both is there for each of them.
        for fewer in [&["", "kata"][..], &["kata"]] {
            queue.assign(with_handlers("a", &image, fewer), 2);
            assert!(queue.next(2).is_none(), "{image}: {fewer:?}");
        }
        queue.assign(with_handlers("a", &image, &[]), 3);
        assert!(queue.next(3).is_some(), "{image}: Pods without a RuntimeClass are others");
    }
}

#[test]
fn another_handler_while_the_pull_runs_is_pulled_for_after_it() {
    for image in ["r.test/app:v1".to_owned(), format!("r.test/app@{DIGEST}")] {
        let mut queue = queue();
        queue.assign(with_handlers("a", &image, &[]), 0);
        let mut job = queue.next(0).unwrap();
        if job.step == Step::CheckPresence {
            queue.ended(&job, Ended::PresenceChecked(Ok(None)), 0, 0.5);
            job = queue.next(0).unwrap();
        }
        queue.assign(with_handlers("a", &image, &["", "kata"]), 1);
        assert_eq!(queue.next(1), None, "{image}: it runs");
        queue.ended(&job, Ended::Pulled(0, held(true)), 2, 0.5);
        let mut job = queue.next(2).unwrap();
        if job.step == Step::CheckPresence {
            let report = queue.ended(&job, Ended::PresenceChecked(Ok(None)), 2, 0.5);
            assert_eq!(report, None, "{image}: it has not been removed");
            job = queue.next(2).unwrap();
        }
        assert_eq!((job.step, handlers_of(&job)), (Step::Pull, vec!["", "kata"]));
    }
}
