//! An inference request in JSON, read without building what nobody needs: elements go straight into one list, unknown
//! fields into nothing, and the lists of what is named are short.

use std::fmt;

use serde::Deserialize;
use serde::de::Deserializer;
use serde::de::Error;
use serde::de::IgnoredAny;
use serde::de::MapAccess;
use serde::de::SeqAccess;
use serde::de::Visitor;

use crate::service::oip::parameters::Parameter;
use crate::service::oip::tensors::Elements;
use crate::service::status::ServiceError;

/// Inputs, outputs, parameters of one of them.
const MAX_NAMED: usize = 64;
/// What an element of a list takes in memory: a list doubles when it grows.
const NUMBER_BYTES: usize = 16;
/// Of a text, beside its letters.
const TEXT_BYTES: usize = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JsonRequest {
    pub(super) id: String,
    pub(super) parameters: JsonParameters,
    pub(super) inputs: Few<JsonInput>,
    pub(super) outputs: Few<JsonOutput>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JsonInput {
    pub(super) name: String,
    pub(super) datatype: String,
    pub(super) shape: Vec<i64>,
    pub(super) parameters: JsonParameters,
    pub(super) data: Option<Data>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct JsonOutput {
    pub(super) name: String,
    pub(super) parameters: JsonParameters,
}

impl JsonRequest {
    /// Fails with the place of what is not as it should be.
    pub(super) fn read(json: &[u8]) -> Result<Self, ServiceError> {
        serde_json::from_slice(json).map_err(|_| {
            let mut again = serde_json::Deserializer::from_slice(json);
            let told = match serde_path_to_error::deserialize::<_, Self>(&mut again) {
                Err(error) if error.path().iter().next().is_some() => {
                    (error.path().to_string(), error.inner().to_string())
                }
                Err(error) => ("body".to_owned(), error.inner().to_string()),
                Ok(_) => ("body".to_owned(), "goes on behind the end of its JSON".to_owned()),
            };
            ServiceError::field(told.0, told.1)
        })
    }

    /// About what the request takes in memory once it is read, beside its bytes.
    pub(super) fn memory(json: &[u8]) -> usize {
        let (mut elements, mut texts, mut is_text, mut is_escaped) = (0, 0, false, false);
        for byte in json {
            match byte {
                _ if is_escaped => is_escaped = false,
                b'\\' => is_escaped = is_text,
                b'"' => {
                    is_text = !is_text;
                    texts += usize::from(is_text);
                }
                b',' if !is_text => elements += 1,
                _ => {}
            }
        }
        elements * NUMBER_BYTES + texts * TEXT_BYTES
    }
}

/// A list of a few things that have names.
#[derive(Debug)]
pub(super) struct Few<T>(pub(super) Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Few<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FewVisitor<T>(Vec<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for FewVisitor<T> {
            type Value = Few<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Few<T>, A::Error> {
                while let Some(element) = list.next_element()? {
                    if self.0.len() == MAX_NAMED {
                        return Err(A::Error::custom(format!("has more than {MAX_NAMED} elements")));
                    }
                    self.0.push(element);
                }
                Ok(Few(self.0))
            }
        }
        deserializer.deserialize_seq(FewVisitor(Vec::new()))
    }
}

/// By their names.
#[derive(Debug, Default)]
pub(super) struct JsonParameters(Vec<(String, Scalar)>);

#[derive(Debug)]
enum Scalar {
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    Other,
}

impl JsonParameters {
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Parameter<'_>)> {
        self.0.iter().map(|(name, value)| {
            let value = match value {
                Scalar::Bool(value) => Parameter::Bool(*value),
                Scalar::Integer(value) => Parameter::Integer(*value),
                Scalar::Number(value) => Parameter::Number(*value),
                Scalar::Text(value) => Parameter::Text(value),
                Scalar::Other => Parameter::Other,
            };
            (name.as_str(), value)
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<Parameter<'_>> {
        self.iter().filter(|(of, _)| *of == name).map(|(_, value)| value).last()
    }
}

impl<'de> Deserialize<'de> for JsonParameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = JsonParameters;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonParameters, A::Error> {
                let mut parameters = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    if parameters.len() == MAX_NAMED {
                        return Err(A::Error::custom(format!("has more than {MAX_NAMED} names")));
                    }
                    parameters.push(entry);
                }
                Ok(JsonParameters(parameters))
            }

            fn visit_unit<E: Error>(self) -> Result<JsonParameters, E> {
                Ok(JsonParameters::default())
            }
        }
        deserializer.deserialize_any(MapVisitor)
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ScalarVisitor;
        impl<'de> Visitor<'de> for ScalarVisitor {
            type Value = Scalar;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value")
            }

            fn visit_bool<E: Error>(self, value: bool) -> Result<Scalar, E> {
                Ok(Scalar::Bool(value))
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<Scalar, E> {
                Ok(Scalar::Integer(i64::try_from(value).unwrap_or(i64::MAX)))
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<Scalar, E> {
                Ok(Scalar::Number(value))
            }

            fn visit_str<E: Error>(self, value: &str) -> Result<Scalar, E> {
                Ok(Scalar::Text(value.to_owned()))
            }

            fn visit_unit<E: Error>(self) -> Result<Scalar, E> {
                Ok(Scalar::Other)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Scalar, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Scalar, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Scalar::Other)
            }
        }
        deserializer.deserialize_any(ScalarVisitor)
    }
}

/// The elements of a tensor, however the lists around them are nested.
#[derive(Debug, Default)]
pub(super) enum Data {
    #[default]
    Nothing,
    Bools(Vec<bool>),
    Numbers(Vec<i64>),
    Texts(Vec<String>),
    Floats,
}

impl Data {
    pub(super) fn elements(&self) -> Elements<'_> {
        match self {
            Self::Nothing => Elements::Raw(&[]),
            Self::Bools(list) => Elements::Bools(list),
            Self::Numbers(list) => Elements::Longs(list),
            Self::Texts(list) => Elements::Texts(list),
            Self::Floats => Elements::Floats,
        }
    }
}

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut data = Self::Nothing;
        deserializer.deserialize_seq(Rows(&mut data))?;
        Ok(data)
    }
}

/// Takes what it meets into one list.
struct Rows<'d>(&'d mut Data);

/// An element, or a list of them.
struct Element<'d>(&'d mut Data);

impl<'de> serde::de::DeserializeSeed<'de> for Element<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(Rows(self.0))
    }
}

impl Rows<'_> {
    fn start(&mut self, with: Data) {
        if let Data::Nothing = self.0 {
            *self.0 = with;
        }
    }
}

fn mixed<E: Error>() -> E {
    E::custom("has elements of several kinds")
}

impl<'de> Visitor<'de> for Rows<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of whole numbers, of strings, or of such lists")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Element(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_bool<E: Error>(mut self, value: bool) -> Result<(), E> {
        self.start(Data::Bools(Vec::new()));
        let Data::Bools(list) = self.0 else { return Err(mixed()) };
        list.push(value);
        Ok(())
    }

    fn visit_i64<E: Error>(mut self, value: i64) -> Result<(), E> {
        self.start(Data::Numbers(Vec::new()));
        let Data::Numbers(list) = self.0 else { return Err(mixed()) };
        list.push(value);
        Ok(())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: Error>(mut self, _value: f64) -> Result<(), E> {
        self.start(Data::Floats);
        let Data::Floats = self.0 else { return Err(mixed()) };
        Ok(())
    }

    fn visit_str<E: Error>(mut self, value: &str) -> Result<(), E> {
        self.start(Data::Texts(Vec::new()));
        let Data::Texts(list) = self.0 else { return Err(mixed()) };
        list.push(value.to_owned());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(json: &str) -> Result<Data, String> {
        let request = format!(r#"{{"inputs": [{{"name": "x", "data": {json}}}]}}"#);
        let request = JsonRequest::read(request.as_bytes()).map_err(|error| error.to_string())?;
        Ok(request.inputs.0.into_iter().next().unwrap().data.unwrap())
    }

    #[test]
    fn elements_are_read_however_they_are_nested() {
        for json in ["[1, 2, 3, 4]", "[[1, 2], [3, 4]]", "[[[1], [2, 3]], 4]"] {
            assert!(matches!(data(json), Ok(Data::Numbers(list)) if list == [1, 2, 3, 4]), "{json}");
        }
        assert!(matches!(data(r#"[["a"], ["\u00e9"]]"#), Ok(Data::Texts(list)) if list == ["a", "é"]));
        assert!(matches!(data("[true, false]"), Ok(Data::Bools(list)) if list == [true, false]));
        assert!(matches!(data("[18446744073709551615]"), Ok(Data::Numbers(list)) if list == [i64::MAX]));
        assert!(matches!(data("[1.5]"), Ok(Data::Floats)));
        assert!(matches!(data("[[], []]"), Ok(Data::Nothing)));
    }

    #[test]
    fn what_is_no_element_is_named_by_its_place() {
        for (json, told) in [
            ("[1, null]", "inputs[0].data[1]: invalid type: null"),
            ("[1, \"a\"]", "inputs[0].data[1]: has elements of several kinds"),
            ("[{}]", "inputs[0].data[0]: invalid type: map"),
            ("5", "inputs[0].data: invalid type: integer"),
            (&"[".repeat(1000), "recursion limit"),
        ] {
            let error = data(json).unwrap_err();
            assert!(error.contains(told), "{json:.20}: {error}");
        }
        let many = format!(r#"{{"inputs": [{}{{}}]}}"#, "{},".repeat(MAX_NAMED));
        let error = JsonRequest::read(many.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("inputs") && error.contains("more than 64 elements"), "{error}");
        let error = JsonRequest::read(b"{} x").unwrap_err().to_string();
        assert!(error.contains("body: goes on behind the end"), "{error}");
    }

    #[test]
    fn memory_is_known_before_it_is_taken() {
        let numbers = format!(r#"{{"inputs": [{{"data": [{}0]}}]}}"#, "0,".repeat(999));
        assert_eq!(JsonRequest::memory(numbers.as_bytes()), 999 * NUMBER_BYTES + 2 * TEXT_BYTES);
        assert_eq!(JsonRequest::memory(br#"["a, \" b", ""]"#), NUMBER_BYTES + 2 * TEXT_BYTES);
    }
}
