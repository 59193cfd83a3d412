//! Reads `.dockerconfigjson` and `.dockercfg` as kubelet does, that is as Go's `encoding/json`
//! does: field names in any case, `null` as absent, the last of repeated fields wins, unknown
//! fields are ignored. Errors name the place in the file and never any of its content.

use std::borrow::Cow;
use std::collections::{HashMap, hash_map};
use std::fmt;

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use super::Credential;

/// Why a pull secret's content cannot be read. Names the place in the file; neither it nor its
/// `Display` ever holds any of the content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeychainError {
    /// Not JSON at all.
    #[error("is not JSON: syntax error at line {line}, column {column}")]
    Syntax {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// JSON of another shape.
    #[error("{place} must be {expected} (line {line}, column {column})")]
    Shape {
        /// Which part of the file.
        place: Place,
        /// What belongs there.
        expected: &'static str,
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// `auth` is not base64.
    #[error("{place} is not base64: it must be the base64 of user:password")]
    AuthNotBase64 {
        /// Which part of the file.
        place: Place,
    },
    /// `auth` is base64 of something without a colon.
    #[error("{place} has no colon once decoded: it must be the base64 of user:password")]
    AuthWithoutColon {
        /// Which part of the file.
        place: Place,
    },
    /// `auth` is base64 of something that is not text. kubelet takes it, but could not send it to
    /// the container runtime.
    #[error("{place} is not UTF-8 once decoded: it must be the base64 of user:password")]
    AuthNotText {
        /// Which part of the file.
        place: Place,
    },
}

/// A part of the file. Registries are counted, in the order of the file, and not named: a name
/// may carry a password, and a message may reach people who may not read the Secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    is_dockercfg: bool,
    section: Option<&'static str>,
    entry: Option<usize>,
    field: Option<&'static str>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = self.field {
            write!(f, "field {field:?} of ")?;
        }
        match (self.entry, self.section) {
            (Some(entry), Some(section)) => write!(f, "entry {entry} of {section:?}"),
            (Some(entry), None) => write!(f, "entry {entry}"),
            (None, Some(section)) => write!(f, "{section:?}"),
            (None, None) => f.write_str("the file"),
        }
    }
}

type Entries = Vec<(String, Credential)>;

pub(super) fn parse_docker_config_json(content: &[u8]) -> Result<Entries, KeychainError> {
    read(content, Place::default())
}

pub(super) fn parse_dockercfg(content: &[u8]) -> Result<Entries, KeychainError> {
    read(content, Place { is_dockercfg: true, ..Place::default() })
}

fn read(content: &[u8], start: Place) -> Result<Entries, KeychainError> {
    let text = decode(content);
    let mut entries = Vec::new();
    let mut reader = Reader {
        place: start,
        expected: "",
        auth_error: None,
        entries: &mut entries,
        places: HashMap::new(),
    };
    let mut json = serde_json::Deserializer::from_str(&text);
    let result = if start.is_dockercfg {
        Registries(&mut reader).deserialize(&mut json)
    } else {
        Config(&mut reader).deserialize(&mut json)
    };
    let Reader { place, expected, auth_error, .. } = reader;
    if let Err(error) = result.and_then(|()| json.end()) {
        let (line, column) = (error.line(), error.column());
        return Err(if error.is_data() {
            KeychainError::Shape { place, expected, line, column }
        } else {
            KeychainError::Syntax { line, column }
        });
    }
    match auth_error {
        Some(error) => Err(error),
        None => Ok(entries),
    }
}

/// As Go does it: one replacement character for each byte that is not UTF-8.
fn decode(content: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(content) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(content.len());
    for chunk in content.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Cow::Owned(text)
}

/// Where the reader is, for messages, and what it found so far.
struct Reader<'e> {
    place: Place,
    expected: &'static str,
    /// The first wrong `auth`. The file's shape is judged first, so it waits.
    auth_error: Option<KeychainError>,
    entries: &'e mut Entries,
    /// Where the entry of each registry is.
    places: HashMap<String, usize>,
}

/// Go matches field names in any case, by simple Unicode folding: of ASCII letters only `k` and
/// `s` have further forms.
fn is_field(written: &str, name: &str) -> bool {
    let fold = |c: char| match c {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    written.chars().map(fold).eq(name.chars().map(fold))
}

macro_rules! object_visitor {
    ($type:ident, $expected:literal) => {
        impl<'de> DeserializeSeed<'de> for $type<'_, '_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
                self.0.expected = $expected;
                deserializer.deserialize_any(self)
            }
        }

        impl<'de> Visitor<'de> for $type<'_, '_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expected)
            }

            // What is null in Go stays as it was.
            fn visit_unit<E>(mut self) -> Result<(), E> {
                self.null();
                Ok(())
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<(), A::Error> {
                self.fields(map)
            }
        }
    };
}

/// The whole of `.dockerconfigjson`.
struct Config<'r, 'e>(&'r mut Reader<'e>);
object_visitor!(Config, "an object with \"auths\"");

impl Config<'_, '_> {
    fn null(&mut self) {}

    fn fields<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let outer = self.0.place;
        while let Some(field) = map.next_key::<String>()? {
            if is_field(&field, "auths") {
                self.0.place.section = Some("auths");
                map.next_value_seed(Registries(self.0))?;
            } else if is_field(&field, "HttpHeaders") {
                self.0.place.section = Some("HttpHeaders");
                map.next_value_seed(Headers(self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            self.0.place = outer;
        }
        Ok(())
    }
}

/// `HttpHeaders`: of no use here, but kubelet refuses the file when it is malformed.
struct Headers<'r, 'e>(&'r mut Reader<'e>);
object_visitor!(Headers, "an object of strings");

impl Headers<'_, '_> {
    fn null(&mut self) {}

    fn fields<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<String>()?.is_some() {
            map.next_value_seed(Text { into: &mut String::new() })?;
        }
        Ok(())
    }
}

/// `auths`, or the whole of `.dockercfg`: credentials by registry.
struct Registries<'r, 'e>(&'r mut Reader<'e>);
object_visitor!(Registries, "an object of credentials by registry");

impl Registries<'_, '_> {
    /// A second `"auths": null` takes the first one's entries away.
    fn null(&mut self) {
        self.0.entries.clear();
        self.0.places.clear();
    }

    fn fields<'de, A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let outer = self.0.place;
        let mut count = 0;
        while let Some(registry) = map.next_key::<String>()? {
            count += 1;
            self.0.place.entry = Some(count);
            let at = self.0.entries.len();
            map.next_value_seed(Entry(self.0, registry.clone()))?;
            // Of a registry written twice the last entry counts.
            match self.0.places.entry(registry) {
                hash_map::Entry::Occupied(old) => drop(self.0.entries.swap_remove(*old.get())),
                hash_map::Entry::Vacant(new) => drop(new.insert(at)),
            }
            self.0.place = outer;
        }
        Ok(())
    }
}

/// One registry's credential.
struct Entry<'r, 'e>(&'r mut Reader<'e>, String);
object_visitor!(Entry, "an object with \"auth\", or \"username\" and \"password\"");

impl Entry<'_, '_> {
    fn null(&mut self) {
        self.push(String::new(), String::new());
    }

    fn push(&mut self, username: String, password: String) {
        let (identity_token, registry_token) = (String::new(), String::new());
        let credential = Credential { username, password, identity_token, registry_token };
        self.0.entries.push((std::mem::take(&mut self.1), credential));
    }

    fn fields<'de, A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        const FIELDS: [&str; 4] = ["username", "password", "email", "auth"];
        let mut values: [String; 4] = Default::default();
        while let Some(written) = map.next_key::<String>()? {
            let known = FIELDS.iter().zip(&mut values).find(|(name, _)| is_field(&written, name));
            let Some((name, into)) = known else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            self.0.place.field = Some(name);
            self.0.expected = "a string";
            map.next_value_seed(Text { into })?;
            self.0.place.field = None;
        }
        let [mut username, mut password, _email, auth] = values;
        if !auth.is_empty() {
            match decode_auth(&auth, Place { field: Some("auth"), ..self.0.place }) {
                Ok(pair) => (username, password) = pair,
                Err(error) => drop(self.0.auth_error.get_or_insert(error)),
            }
        }
        self.push(username, password);
        Ok(())
    }
}

/// A string, or null, which leaves what is there.
struct Text<'a> {
    into: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        text.clone_into(self.into);
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Go's decoder takes trailing bits as they are, and whether padding belongs there is decided by
/// the text's end.
const PADDED: GeneralPurpose = engine(DecodePaddingMode::RequireCanonical);
const UNPADDED: GeneralPurpose = engine(DecodePaddingMode::RequireNone);

const fn engine(padding: DecodePaddingMode) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(padding);
    GeneralPurpose::new(&alphabet::STANDARD, config)
}

/// `auth` is the base64 of `user:password`.
fn decode_auth(auth: &str, place: Place) -> Result<(String, String), KeychainError> {
    let engine = if auth.trim().ends_with('=') { &PADDED } else { &UNPADDED };
    // Go's decoder passes over line ends, which `base64` writes into long texts.
    let text: Vec<u8> = auth.bytes().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
    let decoded = engine.decode(text).map_err(|_| KeychainError::AuthNotBase64 { place })?;
    let decoded = String::from_utf8(decoded).map_err(|_| KeychainError::AuthNotText { place })?;
    let (username, password) =
        decoded.split_once(':').ok_or(KeychainError::AuthWithoutColon { place })?;
    Ok((username.to_owned(), password.to_owned()))
}
