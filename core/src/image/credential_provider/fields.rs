//! Reads JSON and YAML as the kubelet's strict decoder does: names in their exact case, nothing that
//! is unknown, nothing twice, `null` as absent. An error names the field and the right form.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::image::quoted::quoted;

/// What is wrong with which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {fault}")]
pub struct FieldError {
    /// The path of the field, such as `providers[0].matchImages[1]`.
    pub field: String,
    /// The fault and the right form.
    pub fault: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, fault: impl Into<String>) -> Self {
        FieldError { field: field.into(), fault: fault.into() }
    }
}

/// JSON without an object that has a field twice.
pub(super) struct Unique(pub(super) Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor).map(Unique)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((name, Unique(value))) = fields.next_entry::<String, Unique>()? {
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a field is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

/// A value, and where it is.
pub(super) struct Field<'v> {
    pub(super) path: String,
    value: &'v Value,
}

impl<'v> Field<'v> {
    pub(super) fn root(value: &'v Value) -> Self {
        Field { path: String::new(), value }
    }

    pub(super) fn error(&self, fault: impl Into<String>) -> FieldError {
        let path = if self.path.is_empty() { "the file" } else { &self.path };
        FieldError::new(path, fault)
    }

    /// An object that has no other fields than these.
    pub(super) fn object(self, known: &[&str]) -> Result<Object<'v>, FieldError> {
        let Value::Object(fields) = self.value else {
            return Err(self.error(format!("must be an object with {}", known.join(", "))));
        };
        let object = Object { path: self.path, fields };
        match fields.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => {
                let field = object.path_of(&quoted(name).to_string());
                let fault = format!("is unknown: the fields here are {}", known.join(", "));
                Err(FieldError::new(field, fault))
            }
            None => Ok(object),
        }
    }

    pub(super) fn list(self) -> Result<Vec<Field<'v>>, FieldError> {
        let Value::Array(items) = self.value else { return Err(self.error("must be a list")) };
        let item = |(at, value)| Field { path: format!("{}[{at}]", self.path), value };
        Ok(items.iter().enumerate().map(item).collect())
    }

    pub(super) fn text(&self) -> Result<&'v str, FieldError> {
        // Of an item of a list, null is what it is in Go: the empty value.
        match self.value {
            Value::String(text) => Ok(text),
            Value::Null => Ok(""),
            _ => Err(self.error("must be a string; put quotes around it")),
        }
    }
}

/// The fields of an object.
pub(super) struct Object<'v> {
    path: String,
    fields: &'v Map<String, Value>,
}

impl<'v> Object<'v> {
    pub(super) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The field, if it is there and not `null`.
    pub(super) fn get(&self, name: &str) -> Option<Field<'v>> {
        let value = self.fields.get(name).filter(|value| !value.is_null())?;
        Some(Field { path: self.path_of(name), value })
    }

    /// Empty where the field is absent.
    pub(super) fn text(&self, name: &str) -> Result<&'v str, FieldError> {
        self.get(name).map_or(Ok(""), |field| field.text())
    }

    /// Empty where the field is absent.
    pub(super) fn list(&self, name: &str) -> Result<Vec<Field<'v>>, FieldError> {
        self.get(name).map_or(Ok(Vec::new()), Field::list)
    }
}
