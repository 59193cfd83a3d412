//! Inputs: files of the corpus, with a few edits. A seed decides file and edits, so the same seeds
//! make the same inputs on every machine.
#![allow(clippy::panic)]

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bolero::{Test as _, TypeGenerator, produce};
use bolero_engine::BorrowedGeneratorTest;
use bolero_engine::driver::Options;
use bolero_engine::input::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

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
/// Seeds of a run that is told nothing: `0..SEEDS`.
const SEEDS: u64 = 5_000;
/// Random bytes that an input is made from, enough for all edits that are looked at.
const BYTES: usize = 512;

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
pub struct Corpus {
    target: String,
    files: Vec<(String, Vec<u8>)>,
}

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
        Corpus { target: target.to_owned(), files }
    }

    fn mutated(&self, (which, edits): &Input) -> Vec<u8> {
        let file = |which: &u8| &self.files[usize::from(*which) % self.files.len()].1;
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

    /// Holds `property` against each file as it is, and then against mutations of them. Panics with
    /// the smallest input found that fails, and how to run it again.
    pub fn check(&self, property: impl Fn(&[u8])) {
        // After a panic nothing is looked at but the input.
        let property = AssertUnwindSafe(property);
        for (name, content) in &self.files {
            println!("{name}");
            (*property)(content);
        }
        let options = Options::default();
        for seed in seeds() {
            let property = |input: &Input| (*property)(&self.mutated(input));
            let mut test = BorrowedGeneratorTest::new(property, produce::<Input>());
            let mut bytes = vec![0; BYTES];
            StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
            if let Err(error) = test.test(&mut Bytes::new(&bytes, &options)) {
                let found = match test.shrink(bytes.clone(), None, &options) {
                    Some(smallest) => smallest.input,
                    None => test.generate_value(&mut Bytes::new(&bytes, &options)),
                };
                let (file, target) = (self.keep(seed, &self.mutated(&found)), &self.target);
                panic!(
                    "{error}\n{found:?}\nto repeat: IMAGEWARM_FUZZ_SEED={seed} cargo test --test \
                     fuzz {target}::\nfor the corpus: cp {} tests/fuzz/corpus/{target}/",
                    file.display()
                );
            }
        }
    }

    fn keep(&self, seed: u64, input: &[u8]) -> PathBuf {
        let name = format!("found-{}-{seed}", self.target);
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&file, input).expect("what was found can be kept");
        file
    }
}

/// One to repeat; random ones, for as long as wished; or the same on every run.
fn seeds() -> Box<dyn Iterator<Item = u64>> {
    match (number("IMAGEWARM_FUZZ_SEED"), number("IMAGEWARM_FUZZ_SECONDS")) {
        (Some(seed), _) => Box::new(std::iter::once(seed)),
        (None, Some(seconds)) => {
            let end = Instant::now() + Duration::from_secs(seconds);
            let seed = move || (Instant::now() < end).then(rand::random);
            Box::new(std::iter::from_fn(seed))
        }
        (None, None) => Box::new(0..SEEDS),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{variable} must be a number, not {text:?}"),
    }
}
