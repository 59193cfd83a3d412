//! Pull secrets. Every password of the corpus begins with `canary`.

use imagewarm_core::image::{Keychain, Reference};

use crate::mutation::Corpus;

#[test]
fn pull_secrets_are_read_or_refused_without_quoting_them() {
    let images = ["x", "index.docker.io/library/x", "docker.io/library/x:latest"];
    let same = images.map(|image| Reference::parse(image).expect("a reference"));
    let others = ["registry.example.com:5000/team/app", "a.b.example.com/a/b/c", "r.example.com/x"];
    let others = others.map(|image| Reference::parse(image).expect("a reference"));
    Corpus::read("docker_config").check(|bytes| {
        let mut keychain = Keychain::default();
        for added in [keychain.add_docker_config_json(bytes), keychain.add_dockercfg(bytes)] {
            if let Err(error) = added {
                let said = format!("{error} {error:?}").to_lowercase();
                // What the person spoilt themselves may stand there; a password may not.
                assert!(!said.contains("canary"), "{said}");
            }
        }
        assert!(!format!("{keychain:?}").contains("canary"));
        let first = keychain.lookup(&same[0]);
        assert!(same.iter().all(|image| keychain.lookup(image) == first), "spellings differ");
        for image in &others {
            let found = keychain.lookup(image);
            assert!(!format!("{found:?}").contains("canary"));
            // What a kubelet does not read of a Secret, nobody gets.
            let token = |one: &imagewarm_core::image::Credential| {
                !one.identity_token.is_empty() || !one.registry_token.is_empty()
            };
            assert!(!found.iter().any(token), "a token was read");
            // Each once.
            let repeated = found.iter().enumerate().any(|(at, one)| found[..at].contains(one));
            assert!(!repeated, "a credential is tried twice");
        }
        // Read again, the same comes out.
        let mut again = Keychain::default();
        let _ = (again.add_docker_config_json(bytes), again.add_dockercfg(bytes));
        assert!(others.iter().all(|image| again.lookup(image) == keychain.lookup(image)));
    });
}
