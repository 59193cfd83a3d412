//! An error in one field, in the form of Kubernetes' own validation: path, kind of fault, value,
//! and what would be right.

use std::fmt;

use crate::image::quoted::{QUOTED_MAX, printable, quoted};

/// The kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The value cannot be right.
    Invalid,
    /// There must be a value.
    Required,
    /// The list is too long.
    TooMany,
    /// The value takes too many bytes.
    TooLong,
    /// The operator does not allow it.
    Forbidden,
    /// The value names something that does not exist or cannot be used.
    Unusable,
    /// The value could not be validated, for a reason other than the value.
    NotJudged,
}

impl Fault {
    const fn text(self) -> &'static str {
        match self {
            Fault::Invalid | Fault::Unusable => "Invalid value",
            Fault::Required => "Required value",
            Fault::TooMany => "Too many",
            Fault::TooLong => "Too long",
            Fault::Forbidden => "Forbidden",
            Fault::NotJudged => "Internal error",
        }
    }

    /// The `reason` of a `StatusCause`, as Kubernetes names it.
    pub const fn cause(self) -> &'static str {
        match self {
            Fault::Invalid | Fault::Unusable => "FieldValueInvalid",
            Fault::Required => "FieldValueRequired",
            Fault::TooMany => "FieldValueTooMany",
            Fault::TooLong => "FieldValueTooLong",
            Fault::Forbidden => "FieldValueForbidden",
            Fault::NotJudged => "InternalError",
        }
    }
}

/// One field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field, such as `spec.imagePullSecrets[1].name`.
    pub field: String,
    /// The kind of fault.
    pub fault: Fault,
    /// The value as JSON, perhaps cut; empty where there is none.
    pub value: String,
    /// What is wrong, and what would be right.
    pub detail: String,
}

impl FieldError {
    /// Cuts long values; whole ones may be megabytes.
    pub fn new(
        field: impl Into<String>,
        fault: Fault,
        value: &serde_json::Value,
        detail: impl Into<String>,
    ) -> Self {
        let value = match (fault, value) {
            (Fault::Required, _) | (_, serde_json::Value::Null) => String::new(),
            (_, serde_json::Value::String(text)) => quoted(text).to_string(),
            (_, other) => printable(&other.to_string(), QUOTED_MAX),
        };
        FieldError { field: field.into(), fault, value, detail: detail.into() }
    }

    /// The message without the field.
    pub fn body(&self) -> String {
        let separator = if self.value.is_empty() { "" } else { ": " };
        format!("{}{separator}{}: {}", self.fault.text(), self.value, self.detail)
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}
