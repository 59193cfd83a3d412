//! Image references.

use imagewarm_core::image::Reference;
use imagewarm_core::image::object_name::object_name;

use crate::mutation::Corpus;

#[test]
fn references_are_read_one_way_only() {
    Corpus::read("reference").check(|bytes| {
        let text = String::from_utf8_lossy(bytes);
        let reference = match Reference::parse(&text) {
            Ok(reference) => reference,
            Err(error) => {
                let said = error.to_string();
                assert!(!said.is_empty() && said.len() < 2_000, "{text:?}: {said}");
                return;
            }
        };
        let canonical = reference.as_str();
        assert_eq!(Reference::parse(canonical).as_ref(), Ok(&reference), "{text:?}");
        assert!(canonical.is_ascii() && !canonical.contains(char::is_whitespace), "{canonical:?}");
        assert!(canonical.starts_with(reference.repository()), "{canonical:?}");
        assert!(reference.repository().starts_with(reference.domain()), "{canonical:?}");
        assert!(reference.tag().is_some() || reference.digest().is_some(), "{canonical:?}");
        // What is made of it can be the name of an object.
        let name = object_name(&reference, "node-1");
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        assert!(name.len() <= 253 && name.chars().all(fits), "{name:?}");
        let ends = [name.chars().next(), name.chars().last()];
        assert!(ends.into_iter().flatten().all(|c| c.is_ascii_alphanumeric()), "{name:?}");
    });
}
