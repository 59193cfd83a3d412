//! Inputs: files of the corpus, with a few edits.

use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use bolero::TypeGenerator;

/// What makes text and messages interesting, beside random bytes.
const WORDS: [&[u8]; 16] = [
    b"\"",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"@sha256:",
    b"/",
    b"..",
    b"\\u0000",
    b"\xff\xfe",
    b"-1",
    b"1e999",
    b"\xc3\xa9",
];
const LARGEST: usize = 1 << 16;

/// One edit; places are taken modulo the length.
#[derive(Clone, Debug, TypeGenerator)]
pub enum Edit {
    Set {
        at: u16,
        byte: u8,
    },
    Insert {
        at: u16,
        bytes: [u8; 3],
    },
    Word {
        at: u16,
        which: u8,
    },
    Remove {
        at: u16,
        count: u8,
    },
    Repeat {
        at: u16,
        count: u8,
        times: u8,
    },
    Copy {
        from: u16,
        to: u16,
        count: u8,
    },
    Cut {
        at: u16,
    },
    /// The rest comes from another file.
    Splice {
        at: u16,
        other: u8,
        from: u16,
    },
}

/// A file and what is done to it.
pub type Input = (u8, Vec<Edit>);

/// The files of one target.
pub struct Corpus(Vec<(String, Vec<u8>)>);

impl Corpus {
    pub fn read(target: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
        let files = std::fs::read_dir(&folder).expect("the corpus can be read");
        let mut files: Vec<_> = files
            .map(|file| {
                let path = file.expect("the corpus can be listed").path();
                let content = std::fs::read(&path).expect("a file of the corpus can be read");
                (path.display().to_string(), content)
            })
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{} is empty", folder.display());
        Corpus(files)
    }

    fn mutated(&self, (which, edits): &Input) -> Vec<u8> {
        let file = |which: &u8| &self.0[usize::from(*which) % self.0.len()].1;
        let mut bytes = file(which).clone();
        for edit in edits.iter().take(32) {
            let place = |at: &u16| usize::from(*at) % (bytes.len() + 1);
            let range = |at: &u16, count: &u8| {
                let from = place(at);
                from..bytes.len().min(from + usize::from(*count))
            };
            match edit {
                Edit::Set { at, byte } => {
                    let at = place(at);
                    if let Some(old) = bytes.get_mut(at) {
                        *old = *byte;
                    }
                }
                Edit::Insert { at, bytes: new } => drop(bytes.splice(place(at)..place(at), *new)),
                Edit::Word { at, which } => {
                    let word = WORDS[usize::from(*which) % WORDS.len()];
                    drop(bytes.splice(place(at)..place(at), word.iter().copied()));
                }
                Edit::Remove { at, count } => drop(bytes.drain(range(at, count))),
                Edit::Repeat { at, count, times } => {
                    let part = bytes[range(at, count)].repeat(usize::from(*times));
                    drop(bytes.splice(place(at)..place(at), part));
                }
                Edit::Copy { from, to, count } => {
                    let part = bytes[range(from, count)].to_vec();
                    drop(bytes.splice(place(to)..place(to), part));
                }
                Edit::Cut { at } => bytes.truncate(place(at)),
                Edit::Splice { at, other, from } => {
                    let other = file(other);
                    bytes.truncate(place(at));
                    bytes.extend_from_slice(&other[usize::from(*from) % (other.len() + 1)..]);
                }
            }
            bytes.truncate(LARGEST);
        }
        bytes
    }

    /// Holds `property` against each file as it is, and then against mutations of them.
    pub fn check(&self, property: impl Fn(&[u8])) {
        // After a panic nothing is looked at but the input.
        let property = AssertUnwindSafe(property);
        for (name, content) in &self.0 {
            println!("{name}");
            (*property)(content);
        }
        bolero::check!()
            .with_test_time(time())
            .with_type::<Input>()
            .for_each(|input| (*property)(&self.mutated(input)));
    }
}

fn time() -> Duration {
    let seconds = std::env::var("IMAGEWARM_FUZZ_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("IMAGEWARM_FUZZ_SECONDS is a number"));
    Duration::from_secs(seconds.unwrap_or(8))
}
