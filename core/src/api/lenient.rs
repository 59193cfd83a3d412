//! Reads objects of other projects, in which anything may have any shape: what does not fit reads as
//! absent instead of making the whole object unreadable. Also bounds what is kept of it: as a
//! [`Value`], JSON may take 16 times its size.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};

/// The most values (numbers, texts, lists, objects) of one field, or of one element of a list. A
/// container with a thousand environment variables has some 4,000.
const VALUES: usize = 50_000;
/// The most elements of one list.
const ELEMENTS: usize = 1_000;

/// A value of an unexpected shape, or with too many parts, reads as the default.
pub(super) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    let value = Bounded(&Cell::new(VALUES)).deserialize(deserializer)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default())
}

/// Elements of an unexpected shape are skipped, and so are those beyond the first thousand; anything but
/// a list reads as empty.
pub(super) fn lenient_list<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_any(List(PhantomData))
}

struct List<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for List<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Vec<T>, A::Error> {
        let mut kept = Vec::new();
        for _ in 0..ELEMENTS {
            let left = Cell::new(VALUES);
            match elements.next_element_seed(Bounded(&left))? {
                Some(Some(value)) => kept.extend(serde_json::from_value(value).ok()),
                Some(None) => {}
                None => return Ok(kept),
            }
        }
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(kept)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Vec::new())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_str<E>(self, _: &str) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_unit<E>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }

    fn visit_none<E>(self) -> Result<Vec<T>, E> {
        Ok(Vec::new())
    }
}

/// Reads a [`Value`] of at most as many values as are left; `None` when it has more.
struct Bounded<'a>(&'a Cell<usize>);

impl Bounded<'_> {
    /// Whether one more is within the bound.
    fn take(&self) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }

    fn leaf<E>(&self, value: impl Into<Value>) -> Result<Option<Value>, E> {
        Ok(self.take().then(|| value.into()))
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Option<Value>, A::Error> {
        let mut kept = Vec::new();
        let mut is_within = self.take();
        while is_within {
            match elements.next_element_seed(Bounded(self.0))? {
                Some(Some(value)) => kept.push(value),
                Some(None) => is_within = false,
                None => return Ok(Some(Value::Array(kept))),
            }
        }
        drop(kept);
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Option<Value>, A::Error> {
        let mut kept = Map::new();
        let mut is_within = self.take();
        while is_within {
            let Some(key) = entries.next_key::<String>()? else {
                return Ok(Some(Value::Object(kept)));
            };
            match entries.next_value_seed(Bounded(self.0))? {
                Some(value) => drop(kept.insert(key, value)),
                None => is_within = false,
            }
        }
        drop(kept);
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Option<Value>, E> {
        self.leaf(value)
    }

    fn visit_i64<E>(self, value: i64) -> Result<Option<Value>, E> {
        self.leaf(value)
    }

    fn visit_u64<E>(self, value: u64) -> Result<Option<Value>, E> {
        self.leaf(value)
    }

    fn visit_f64<E>(self, value: f64) -> Result<Option<Value>, E> {
        self.leaf(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Option<Value>, E> {
        self.leaf(value)
    }

    fn visit_string<E>(self, value: String) -> Result<Option<Value>, E> {
        self.leaf(value)
    }

    fn visit_unit<E>(self) -> Result<Option<Value>, E> {
        self.leaf(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Option<Value>, E> {
        self.leaf(Value::Null)
    }
}

/// Passes each element of a list to `each`, and returns how many there were. Nothing else is kept.
pub(crate) fn for_each_element<'de, D, T>(
    deserializer: D,
    each: impl FnMut(T),
) -> Result<usize, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Each<F, T>(F, PhantomData<T>);

    impl<'de, F: FnMut(T), T: Deserialize<'de>> Visitor<'de> for Each<F, T> {
        type Value = usize;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<usize, A::Error> {
            let mut count = 0;
            while let Some(element) = elements.next_element()? {
                (self.0)(element);
                count += 1;
            }
            Ok(count)
        }
    }
    deserializer.deserialize_seq(Each(each, PhantomData))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Sample {
        #[serde(deserialize_with = "lenient")]
        text: String,
        #[serde(deserialize_with = "lenient")]
        value: Value,
        #[serde(deserialize_with = "lenient_list")]
        list: Vec<i64>,
    }

    fn read(object: &Value) -> Sample {
        serde_json::from_str(&object.to_string()).unwrap()
    }

    #[test]
    fn what_fits_is_kept_as_it_is() {
        let value = json!({"a": [1, -2, 0.5, true, null, "x", {"b": {}}], "c": []});
        let sample = read(&json!({"text": "x", "value": value, "list": [1, 2]}));
        assert_eq!(sample, Sample { text: "x".into(), value, list: vec![1, 2] });
        let again: Sample = serde_saphyr::from_str("text: x\nvalue: {a: [1]}\nlist: [3]").unwrap();
        assert_eq!((again.value, again.list), (json!({"a": [1]}), vec![3]));
    }

    #[test]
    fn what_does_not_fit_reads_as_absent() {
        for odd in
            [json!(1), json!(-1), json!(1.5), json!(true), json!(null), json!("x"), json!({"a": 1})]
        {
            assert_eq!(read(&json!({"list": odd, "text": "t"})).list, Vec::<i64>::new(), "{odd}");
        }
        let sample = read(&json!({"text": [1], "list": [1, "x", null, [2], {"a": 3}, 4]}));
        assert_eq!((sample.text, sample.list), (String::new(), vec![1, 4]));
    }

    #[test]
    fn what_is_too_much_is_not_kept() {
        let within = json!(vec![0; VALUES - 1]);
        assert_eq!(read(&json!({"value": within})).value, within);
        let nested = json!({"a": {"b": vec![0; VALUES]}});
        for beyond in [json!(vec![0; VALUES]), nested.clone(), json!([[nested]])] {
            let sample = read(&json!({"value": beyond, "text": "after it"}));
            assert_eq!((sample.value, &*sample.text), (Value::Null, "after it"));
        }
        let many: Vec<usize> = (0..2 * ELEMENTS).collect();
        let sample = read(&json!({"list": many, "text": "after it"}));
        assert_eq!((sample.list.len(), &*sample.text), (ELEMENTS, "after it"));
        // One large element costs itself only.
        let sample = read(&json!({"list": [1, vec![0; VALUES + 1], 3]}));
        assert_eq!(sample.list, [1, 3]);
    }
}
