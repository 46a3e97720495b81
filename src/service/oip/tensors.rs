//! A tensor as it was sent: its name, datatype and shape, and its elements in one of several forms.
//!
//! ```text
//! raw       little-endian, row by row; of BYTES each with its length before it (gRPC's raw contents, HTTP's tail)
//! lists     numbers or bytes that the wire has parsed already (gRPC's typed contents, JSON)
//! ```
//!
//! Nothing is copied, and nothing is taken on trust: a shape is a claim, and holds only if as many elements are there.

use bytes::Bytes;

/// The one for text.
pub(super) const BYTES: &str = "BYTES";
/// Those of whole numbers, with the bytes of an element and whether it has a sign.
const INTEGERS: [(&str, usize, bool); 9] = [
    ("BOOL", 1, false),
    ("INT8", 1, true),
    ("INT16", 2, true),
    ("INT32", 4, true),
    ("INT64", 8, true),
    ("UINT8", 1, false),
    ("UINT16", 2, false),
    ("UINT32", 4, false),
    ("UINT64", 8, false),
];
/// Before each element of BYTES.
const LENGTH_BYTES: usize = 4;
/// More of what a caller sent is not quoted.
const MAX_QUOTED: usize = 64;

/// One input.
pub(super) struct Tensor<'a> {
    pub(super) name: &'a str,
    pub(super) datatype: &'a str,
    pub(super) shape: &'a [i64],
    pub(super) elements: Elements<'a>,
}

/// In the order of rows.
#[derive(Clone, Copy)]
pub(super) enum Elements<'a> {
    Raw(&'a [u8]),
    Bools(&'a [bool]),
    Ints(&'a [i32]),
    Longs(&'a [i64]),
    Uints(&'a [u32]),
    Ulongs(&'a [u64]),
    Bytes(&'a [Bytes]),
    Texts(&'a [String]),
    /// What no input of ours has.
    Floats,
}

/// Whole numbers, each read where it lies.
#[derive(Clone, Copy)]
pub(super) struct Integers<'a> {
    elements: Elements<'a>,
    width: usize,
    is_signed: bool,
}

impl<'a> Tensor<'a> {
    /// The rows, if the shape is one of `[rows]` and `[rows, 1]`.
    pub(super) fn rows(&self) -> Result<usize, String> {
        match *self.shape {
            [rows] | [rows, 1] => size(rows),
            _ => Err(format!("has shape {}, where [batch] or [batch, 1] is needed", self.shown_shape())),
        }
    }

    /// The rows and columns, if the shape has both.
    pub(super) fn rows_and_columns(&self) -> Result<(usize, usize), String> {
        match *self.shape {
            [rows, columns] => Ok((size(rows)?, size(columns)?)),
            _ => Err(format!("has shape {}, where [batch, tokens] is needed", self.shown_shape())),
        }
    }

    pub(super) fn shown_shape(&self) -> String {
        match self.shape.len() > 8 {
            true => format!("of {} dimensions", self.shape.len()),
            false => format!("{:?}", self.shape),
        }
    }

    /// The elements as whole numbers, as many as the shape says.
    pub(super) fn integers(&self) -> Result<Integers<'a>, String> {
        let known = INTEGERS.iter().find(|(name, ..)| *name == self.datatype);
        let &(_, width, is_signed) = known.ok_or_else(|| {
            format!("has datatype {}, where INT64 or INT32 is needed", quoted(self.datatype))
        })?;
        let count = self.count()?;
        let found = match self.elements {
            Elements::Raw(bytes) if count.checked_mul(width) == Some(bytes.len()) => count,
            Elements::Raw(bytes) => return Err(self.not_so_large(bytes.len(), count, width)),
            Elements::Bools(list) => list.len(),
            Elements::Ints(list) => list.len(),
            Elements::Longs(list) => list.len(),
            Elements::Uints(list) => list.len(),
            Elements::Ulongs(list) => list.len(),
            Elements::Bytes(_) | Elements::Texts(_) | Elements::Floats => {
                return Err(format!("has elements that are not of its datatype, {}", self.datatype));
            }
        };
        self.has_all(found, count)?;
        Ok(Integers { elements: self.elements, width, is_signed })
    }

    /// The elements as text, as many as the shape says.
    pub(super) fn texts(&self) -> Result<Vec<&'a str>, String> {
        if self.datatype != BYTES {
            return Err(format!("has datatype {}, where BYTES is needed", quoted(self.datatype)));
        }
        let count = self.count()?;
        let text = |(index, bytes): (usize, &'a [u8])| {
            str::from_utf8(bytes).map_err(|_| format!("has an element that is not UTF-8: number {index}"))
        };
        match self.elements {
            Elements::Raw(bytes) => raw_elements(bytes, count)?.into_iter().enumerate().map(text).collect(),
            Elements::Bytes(list) => {
                self.has_all(list.len(), count)?;
                list.iter().map(|bytes| &bytes[..]).enumerate().map(text).collect()
            }
            Elements::Texts(list) => {
                self.has_all(list.len(), count)?;
                Ok(list.iter().map(String::as_str).collect())
            }
            _ => Err("has elements that are not of its datatype, BYTES".to_owned()),
        }
    }

    /// How many elements the shape claims.
    fn count(&self) -> Result<usize, String> {
        let times = |product: usize, dimension: &i64| product.checked_mul(size(*dimension).ok()?);
        let count = self.shape.iter().try_fold(1, times);
        count.ok_or_else(|| format!("has shape {}, which no tensor has", self.shown_shape()))
    }

    fn has_all(&self, found: usize, count: usize) -> Result<(), String> {
        if found == count {
            return Ok(());
        }
        Err(format!("has {found} elements, where its shape {} needs {count}", self.shown_shape()))
    }

    fn not_so_large(&self, bytes: usize, count: usize, width: usize) -> String {
        let shape = self.shown_shape();
        format!("has {bytes} bytes, where shape {shape} needs {count} elements of {width} bytes each")
    }
}

impl Integers<'_> {
    /// The one at this place; one that no `i64` holds is the largest that it holds.
    pub(super) fn at(&self, index: usize) -> i64 {
        match self.elements {
            Elements::Raw(bytes) => self.read(&bytes[index * self.width..][..self.width]),
            Elements::Bools(list) => i64::from(list[index]),
            Elements::Ints(list) => i64::from(list[index]),
            Elements::Longs(list) => list[index],
            Elements::Uints(list) => i64::from(list[index]),
            Elements::Ulongs(list) => i64::try_from(list[index]).unwrap_or(i64::MAX),
            Elements::Bytes(_) | Elements::Texts(_) | Elements::Floats => {
                unreachable!("are no whole numbers")
            }
        }
    }

    fn read(&self, bytes: &[u8]) -> i64 {
        let is_negative = self.is_signed && bytes.last().is_some_and(|byte| *byte >= 0x80);
        let mut wide = [if is_negative { 0xff } else { 0 }; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        match self.is_signed {
            true => i64::from_le_bytes(wide),
            false => i64::try_from(u64::from_le_bytes(wide)).unwrap_or(i64::MAX),
        }
    }
}

fn size(dimension: i64) -> Result<usize, String> {
    usize::try_from(dimension).map_err(|_| format!("has a dimension of {dimension}"))
}

/// Elements with their lengths before them. There are `count`, and nothing else.
fn raw_elements(bytes: &[u8], count: usize) -> Result<Vec<&[u8]>, String> {
    // an element takes four bytes at least: whoever claims more pays for nothing here
    let mut elements = Vec::with_capacity(count.min(bytes.len() / LENGTH_BYTES));
    let mut rest = bytes;
    while let Some((length, behind)) = rest.split_first_chunk::<LENGTH_BYTES>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((element, behind)) = behind.split_at_checked(length) else {
            let (index, left) = (elements.len(), behind.len());
            return Err(format!("says that element {index} has {length} bytes, where {left} are left"));
        };
        elements.push(element);
        rest = behind;
        if elements.len() > count {
            break;
        }
    }
    match (elements.len(), rest.len()) {
        (found, 0) if found == count => Ok(elements),
        (found, left) if found == count => Err(format!("has {left} bytes behind its last element")),
        (found, _) if found > count => Err(format!("has more than the {count} elements of its shape")),
        (found, _) => Err(format!("has {found} elements, where its shape needs {count}")),
    }
}

/// The start of what a caller sent.
pub(super) fn quoted(text: &str) -> String {
    let start = &text[..text.floor_char_boundary(MAX_QUOTED)];
    if start.len() < text.len() { format!("{start:?}…") } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor<'a>(datatype: &'a str, shape: &'a [i64], elements: Elements<'a>) -> Tensor<'a> {
        Tensor { name: "x", datatype, shape, elements }
    }

    fn lengths_and(texts: &[&str]) -> Vec<u8> {
        texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()).collect()
    }

    #[test]
    fn both_forms_of_numbers_are_read() {
        let numbers: [i64; 4] = [0, 1, -2, 127];
        for &(datatype, width, is_signed) in &INTEGERS {
            let expected: Vec<i64> = numbers
                .into_iter()
                .filter(|number| is_signed || *number >= 0)
                .filter(|number| datatype != "BOOL" || *number < 2)
                .collect();
            let raw: Vec<u8> =
                expected.iter().flat_map(|number| number.to_le_bytes()[..width].to_vec()).collect();
            let shape = [1, expected.len() as i64];
            for elements in [Elements::Raw(&raw), Elements::Longs(&expected)] {
                let integers = tensor(datatype, &shape, elements).integers().unwrap();
                let read: Vec<i64> = (0..expected.len()).map(|index| integers.at(index)).collect();
                assert_eq!(read, expected, "{datatype}");
            }
        }
        let large = u64::MAX.to_le_bytes();
        assert_eq!(tensor("UINT64", &[1], Elements::Raw(&large)).integers().unwrap().at(0), i64::MAX);
    }

    #[test]
    fn both_forms_of_text_are_read() {
        let texts = ["one", "", "drei ü"];
        let raw = lengths_and(&texts);
        let list: Vec<Bytes> = texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
        let strings = texts.map(str::to_owned);
        for elements in [Elements::Raw(&raw), Elements::Bytes(&list), Elements::Texts(&strings)] {
            assert_eq!(tensor(BYTES, &[3, 1], elements).texts().unwrap(), texts);
        }
    }

    #[test]
    fn what_a_shape_claims_must_be_there() {
        let raw = [0; 16];
        let texts = lengths_and(&["a", "b"]);
        let mut lies = texts.clone();
        lies[5] = 200;
        for (datatype, shape, bytes, problem) in [
            (
                "INT64",
                &[2, 2][..],
                &raw[..],
                "has 16 bytes, where shape [2, 2] needs 4 elements of 8 bytes each",
            ),
            ("INT32", &[i64::MAX, 4], &raw, "has shape [9223372036854775807, 4], which no tensor has"),
            ("INT32", &[-1, 4], &raw, "has shape [-1, 4], which no tensor has"),
            ("INT64", &[1 << 61, 1], &raw, "needs 2305843009213693952 elements of 8 bytes each"),
            ("INT64", &[1; 9], &raw, "shape of 9 dimensions needs 1 elements"),
            ("FP32", &[2, 2], &raw, "has datatype \"FP32\", where INT64 or INT32 is needed"),
            (BYTES, &[3], &texts, "has 2 elements, where its shape needs 3"),
            (BYTES, &[1_000_000_000], &texts, "has 2 elements, where its shape needs 1000000000"),
            (BYTES, &[1], &texts, "has more than the 1 elements of its shape"),
            (BYTES, &[2], &texts[..9], "says that element 1 has 1 bytes, where 0 are left"),
            (BYTES, &[1], &texts[..7], "has 2 bytes behind its last element"),
            (BYTES, &[2], &lies, "says that element 1 has 200 bytes, where 1 are left"),
            (BYTES, &[1], &[1, 0, 0, 0, 0xff], "is not UTF-8: number 0"),
        ] {
            let tensor = tensor(datatype, shape, Elements::Raw(bytes));
            let told = match datatype {
                BYTES => tensor.texts().map(|_| ()),
                _ => tensor.integers().map(|_| ()),
            };
            let told = told.unwrap_err();
            assert!(told.contains(problem), "{datatype} {shape:?}: {told}");
        }
        let told = tensor("INT64", &[2, 2], Elements::Longs(&[1, 2, 3])).integers().err().unwrap();
        assert_eq!(told, "has 3 elements, where its shape [2, 2] needs 4");
        let told = tensor("INT64", &[1], Elements::Floats).integers().err().unwrap();
        assert_eq!(told, "has elements that are not of its datatype, INT64");
    }
}
