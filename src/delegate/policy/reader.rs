// SPDX-License-Identifier: LGPL-2.1-or-later
//! From TOML to a policy's types, with errors that say where and what.
//!
//! serde's own way from the toml crate says "invalid type: string "a", expected
//! u32" and does not name the field. Here each error has the field's path, what
//! the file has there and what is allowed.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

/// How much of a wrong value an error shows.
const SHOWN_MAX: usize = 48;

/// What is wrong, and where in the text.
#[derive(Debug)]
pub struct Error {
    /// The names of the field and of those that it is in, the innermost first.
    path: Vec<String>,
    /// The offset in the text; unknown as long as the error is in code that
    /// knows nothing of a text.
    at: Option<usize>,
    text: String,
    /// Whether the text is about a value, which is still to be shown.
    about_value: bool,
}

impl Error {
    pub fn at(at: usize, text: impl Into<String>) -> Error {
        Error {
            path: Vec::new(),
            at: Some(at),
            text: text.into(),
            about_value: false,
        }
    }

    /// The error of a field of `key`.
    pub fn below(mut self, key: &str) -> Error {
        self.path.push(key.to_owned());
        self
    }

    /// Says first in what it is: `place` ends in a colon.
    pub fn within(self, place: &str) -> Error {
        Error {
            text: format!("{place} {self}"),
            path: Vec::new(),
            ..self
        }
    }

    pub fn offset(&self) -> usize {
        self.at.unwrap_or(0)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
        match path.is_empty() {
            true => f.write_str(&self.text),
            false => write!(f, "{} {}", path.join("."), self.text),
        }
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(text: T) -> Error {
        Error {
            path: Vec::new(),
            at: None,
            text: text.to_string(),
            about_value: true,
        }
    }

    // What was found is shown as the file has it.
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Error {
        Error::custom(format_args!("it must be {expected}"))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Error {
        Error::custom(format_args!("it must be {expected}"))
    }

    fn invalid_length(_: usize, expected: &dyn Expected) -> Error {
        Error::custom(format_args!("it must be {expected}"))
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Error {
        Error::custom(format_args!("it must be one of {}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Error {
        Error {
            path: vec![field.to_owned()],
            at: None,
            text: "is missing: it is required".to_owned(),
            about_value: false,
        }
    }
}

pub type Result<T> = std::result::Result<T, Error>;

/// A value of the file.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    text: &'a str,
    /// Where an error points: at the value's key.
    at: usize,
    value: &'a Spanned<DeValue<'a>>,
    is_element: bool,
}

impl<'a> Node<'a> {
    /// The value as the file has it, shortened.
    pub fn found(&self) -> String {
        match self.value.get_ref() {
            DeValue::Table(_) => return "a table".to_owned(),
            DeValue::Array(array) if array.iter().any(|value| value.get_ref().is_table()) => {
                return "a list of tables".to_owned();
            }
            _ => {}
        }
        let source = self.text.get(self.value.span()).unwrap_or_default();
        let mut shown: String = source
            .chars()
            .take(SHOWN_MAX)
            .map(|char| if char.is_control() { ' ' } else { char })
            .collect();
        if shown.len() < source.len() {
            shown.push('…');
        }
        shown
    }

    /// Types check values after the deserializer is done with them, too.
    fn seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<S::Value> {
        seed.deserialize(self).map_err(|error| self.shown(error))
    }

    pub fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    pub fn table(self) -> Result<Table<'a>> {
        match self.value.get_ref() {
            DeValue::Table(table) => Ok(Table::new(self.text, table, self.at)),
            _ => Err(self.wrong("it must be a table")),
        }
    }

    /// The tables that `[[key]]` makes.
    pub fn tables(self) -> Result<Vec<Table<'a>>> {
        let wrong = || self.wrong("it must be a list of tables, each below a [[rule]]");
        let values = self.value.get_ref().as_array().ok_or_else(wrong)?;
        values
            .iter()
            .map(|value| {
                let table = value.get_ref().as_table().ok_or_else(wrong)?;
                Ok(Table::new(self.text, table, value.span().start))
            })
            .collect()
    }

    /// The value is not what it must be.
    pub fn wrong(&self, text: &str) -> Error {
        self.shown(serde::de::Error::custom(text))
    }

    /// Completes an error that arose in reading this.
    fn shown(&self, error: Error) -> Error {
        if error.at.is_some() {
            return error;
        }
        let text = match (error.about_value, self.is_element) {
            (true, false) => format!("is {}: {}", self.found(), error.text),
            (true, true) => format!("has {}: {}", self.found(), error.text),
            (false, _) => error.text,
        };
        Error {
            text,
            at: Some(self.at),
            about_value: false,
            ..error
        }
    }

    fn number<T: TryFrom<u64> + fmt::Display>(&self, least: T, most: T) -> Result<T> {
        let number = match self.value.get_ref() {
            DeValue::Integer(integer) => {
                unsigned(integer).and_then(|number| number.try_into().ok())
            }
            _ => None,
        };
        number.ok_or_else(|| self.wrong(&format!("it must be a number from {least} to {most}")))
    }
}

fn unsigned(integer: &DeInteger<'_>) -> Option<u64> {
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

macro_rules! numbers {
    ($($method:ident $visit:ident $type:ident,)+) => {
        $(fn $method<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
            let number = self.number($type::MIN, $type::MAX)?;
            visitor.$visit(number).map_err(|error: Error| self.shown(error))
        })+
    };
}

impl<'a> Deserializer<'a> for Node<'a> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        let result = match self.value.get_ref() {
            DeValue::String(string) => visitor.visit_str(string),
            DeValue::Integer(integer) => match unsigned(integer) {
                Some(number) => visitor.visit_u64(number),
                // Negative, or more than 64 bits: nothing here is.
                None => Err(serde::de::Error::invalid_type(
                    Unexpected::Other("integer"),
                    &visitor,
                )),
            },
            DeValue::Boolean(boolean) => visitor.visit_bool(*boolean),
            DeValue::Array(array) => visitor.visit_seq(Elements {
                node: self,
                values: array.iter(),
            }),
            DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => Err(
                serde::de::Error::invalid_type(Unexpected::Other("value"), &visitor),
            ),
        };
        result.map_err(|error| self.shown(error))
    }

    numbers! {
        deserialize_u8 visit_u8 u8,
        deserialize_u16 visit_u16 u16,
        deserialize_u32 visit_u32 u32,
        deserialize_u64 visit_u64 u64,
    }

    fn deserialize_option<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'a>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        match self.value.get_ref() {
            DeValue::Array(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong("it must be a list, such as [\"a\", \"b\"]")),
        }
    }

    fn deserialize_string<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        match self.value.get_ref() {
            DeValue::String(_) => self.deserialize_any(visitor),
            _ => Err(self.wrong("it must be a string")),
        }
    }

    fn deserialize_str<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_string(visitor)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.table()?
            .deserialize_struct(name, fields, visitor)
            .map_err(|error| self.shown(error))
    }

    fn deserialize_enum<V: Visitor<'a>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        let name = self.value.get_ref().as_str().unwrap_or_default();
        if !variants.contains(&name) {
            return Err(self.shown(serde::de::Error::unknown_variant(name, variants)));
        }
        visitor.visit_enum(Variant(name))
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit
        unit_struct tuple tuple_struct map identifier ignored_any
    }
}

struct Variant<'a>(&'a str);

impl<'a> EnumAccess<'a> for Variant<'a> {
    type Error = Error;
    type Variant = <StrDeserializer<'a, Error> as EnumAccess<'a>>::Variant;

    fn variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<(S::Value, Self::Variant)> {
        let name: StrDeserializer<'a, Error> = self.0.into_deserializer();
        name.variant_seed(seed)
    }
}

struct Elements<'a> {
    node: Node<'a>,
    values: std::slice::Iter<'a, Spanned<DeValue<'a>>>,
}

impl<'a> SeqAccess<'a> for Elements<'a> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        let Some(value) = self.values.next() else {
            return Ok(None);
        };
        let element = Node {
            at: value.span().start,
            value,
            is_element: true,
            ..self.node
        };
        element.seed(seed).map(Some)
    }
}

/// A table of the file, its fields in the file's order.
pub struct Table<'a> {
    fields: Vec<(&'a str, Node<'a>)>,
    at: usize,
    /// Fields that somebody else reads.
    others: &'static [&'static str],
}

impl<'a> Table<'a> {
    pub fn new(text: &'a str, table: &'a DeTable<'a>, at: usize) -> Table<'a> {
        let field = |(key, value): (&'a Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let key: &Spanned<std::borrow::Cow<'a, str>> = key;
            let node = Node {
                text,
                at: key.span().start,
                value,
                is_element: false,
            };
            (&**key.get_ref(), node)
        };
        let mut fields: Vec<_> = table.iter().map(field).collect();
        fields.sort_by_key(|(_, node)| node.at);
        Table {
            fields,
            at,
            others: &[],
        }
    }

    pub fn offset(&self) -> usize {
        self.at
    }

    pub fn field(&self, name: &str) -> Option<Node<'a>> {
        let field = |(key, node): &(&str, Node<'a>)| (*key == name).then_some(*node);
        self.fields.iter().find_map(field)
    }

    pub fn read<T: Deserialize<'a>>(&self, name: &str) -> Result<Option<T>> {
        let read = |node: Node<'a>| node.seed(PhantomData).map_err(|error| error.below(name));
        self.field(name).map(read).transpose()
    }

    /// The table in a field.
    pub fn table(&self, name: &str) -> Result<Table<'a>> {
        match self.field(name) {
            Some(node) => node.table().map_err(|error| error.below(name)),
            None => Err(self.missing(name, "it is required")),
        }
    }

    /// The field is not there.
    pub fn missing(&self, name: &str, text: &str) -> Error {
        Error::at(self.at, format!("is missing: {text}")).below(name)
    }

    /// The field is there and says what it must not.
    pub fn wrong(&self, name: &str, text: &str) -> Error {
        match self.field(name) {
            Some(node) => node.wrong(text).below(name),
            None => self.missing(name, text),
        }
    }

    /// The field is there; the text says what is wrong with it.
    pub fn error(&self, name: &str, text: &str) -> Error {
        let at = self.field(name).map_or(self.at, |node| node.at);
        Error::at(at, text).below(name)
    }

    /// Refuses fields that are not among these.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.fields.iter().find(|(key, _)| !known.contains(key)) {
            None => Ok(()),
            Some((key, node)) => {
                let text = format!("is not known: the fields here are {}", known.join(", "));
                Err(Error::at(node.at, text).below(&shortened(key)))
            }
        }
    }

    /// Reads what is left besides fields that somebody else reads.
    pub fn read_others<T: Deserialize<'a>>(&self, than: &'static [&'static str]) -> Result<T> {
        T::deserialize(Table {
            fields: self.fields.clone(),
            others: than,
            ..*self
        })
    }
}

fn shortened(key: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match key.bytes().all(is_plain) && (1..=SHOWN_MAX).contains(&key.len()) {
        true => key.to_owned(),
        false => format!("{:?}", key.chars().take(SHOWN_MAX).collect::<String>()),
    }
}

impl<'a> Deserializer<'a> for Table<'a> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_struct("", &[], visitor)
    }

    fn deserialize_struct<V: Visitor<'a>>(
        mut self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.only(&[self.others, fields].concat())?;
        self.fields.retain(|(key, _)| fields.contains(key));
        visitor.visit_map(Fields {
            fields: self.fields.into_iter(),
            value: None,
        })
    }

    forward_to_deserialize_any! {
        <V: Visitor<'a>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string
        bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

struct Fields<'a> {
    fields: std::vec::IntoIter<(&'a str, Node<'a>)>,
    value: Option<(&'a str, Node<'a>)>,
}

impl<'a> MapAccess<'a> for Fields<'a> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        self.value = self.fields.next();
        let Some((key, _)) = self.value else {
            return Ok(None);
        };
        let key: StrDeserializer<'a, Error> = key.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value> {
        let (key, node) = self.value.take().ok_or_else(|| {
            <Error as serde::de::Error>::custom("a value was asked for before its key")
        })?;
        node.seed(seed).map_err(|error| error.below(key))
    }
}
