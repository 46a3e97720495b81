//! Counts what an encoded request holds while its bytes arrive, before anything of it is decoded.
//!
//! An empty sample takes two bytes of the wire and a hundred of memory, and compression makes a thousand of
//! them one byte: limits in bytes alone bound nothing. So the wire format is walked by the contract's own
//! descriptor, in pieces as they come, and the walk objects to the first sample too many.
//!
//! What counts as a *part* is what takes memory of its own, whatever its size: every message inside of the
//! request (samples, turns, ...) and every string of a list.

use std::collections::HashMap;

use prost::Message;
use prost_types::DescriptorProto;
use prost_types::FieldDescriptorProto;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Label;
use prost_types::field_descriptor_proto::Type;

use crate::proto;
use crate::service::request::MAX_NAME_BYTES;

/// The memory that a part takes beside its bytes: the struct, twice, since a growing list doubles.
const PART_BYTES: usize = 256;
/// As prost's own: what is deeper is not decoded.
const MAX_DEPTH: usize = 100;

/// What a request may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Elements of the list of samples, if it has one.
    pub(super) samples: usize,
    /// Parts of all kinds.
    pub(super) parts: usize,
}

/// Why a request is not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// More samples than the bounds allow.
    Samples,
    /// More parts than the bounds allow.
    Parts,
    /// This is not the wire format, or not of a request; why.
    Malformed(&'static str),
}

/// A walk through one message.
pub(super) struct Scanner {
    schema: &'static Schema,
    bounds: Bounds,
    /// The messages that the walk is inside of, with the positions where they end.
    open: Vec<(&'static Fields, u64)>,
    position: u64,
    state: State,
    samples: usize,
    parts: usize,
    /// What the numbers of lists take in memory: each has one byte of the wire at least.
    number_bytes: usize,
    request_id: Vec<u8>,
}

#[derive(Clone, Copy)]
enum State {
    Tag(Varint),
    Length(Kind, Varint),
    /// A number that stands alone.
    Number(Varint),
    /// So many bytes to the end of a field.
    Skip(Kind, u64),
}

/// A number of which some bytes may still be on their way.
#[derive(Clone, Copy, Default)]
struct Varint {
    value: u64,
    bytes: u32,
}

impl Varint {
    /// The number, once its last byte is there.
    fn push(&mut self, byte: u8) -> Result<Option<u64>, Refusal> {
        if self.bytes == 10 {
            return Err(Refusal::Malformed("a number has more than 10 bytes"));
        }
        self.value |= u64::from(byte & 0x7f) << (7 * self.bytes);
        self.bytes += 1;
        Ok((byte < 0x80).then_some(self.value))
    }
}

impl Scanner {
    pub(super) fn new(schema: &'static Schema, bounds: Bounds) -> Self {
        Self {
            schema,
            bounds,
            open: vec![(schema.request(), u64::MAX)],
            position: 0,
            state: State::Tag(Varint::default()),
            samples: 0,
            parts: 0,
            number_bytes: 0,
            request_id: Vec::new(),
        }
    }

    /// Walks on, to the end of these bytes. [`Refusal::Samples`] and [`Refusal::Parts`] come once: the walk may go
    /// on after them, in search of the request's id.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), Refusal> {
        let was_refused = self.excess().is_some();
        while let Some(&byte) = bytes.first() {
            if let State::Skip(kind, left) = self.state {
                let taken = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.skip(kind, &bytes[..taken]);
                self.state = State::Skip(kind, left - taken as u64);
                bytes = &bytes[taken..];
            } else {
                self.position += 1;
                self.state = self.step(byte)?;
                bytes = &bytes[1..];
            }
            self.close()?;
        }
        match self.excess() {
            Some(refusal) if !was_refused => Err(refusal),
            _ => Ok(()),
        }
    }

    /// Whether the message may end here.
    pub(super) fn finish(&self) -> Result<(), Refusal> {
        let is_between = matches!(self.state, State::Tag(tag) if tag.bytes == 0);
        match is_between && self.open.len() == 1 {
            true => Ok(()),
            false => Err(Refusal::Malformed("it ends too early")),
        }
    }

    /// About what the request takes in memory once it is decoded.
    pub(super) fn decoded_bytes(&self) -> usize {
        self.position as usize + PART_BYTES * self.parts + self.number_bytes
    }

    /// The request's id, or the start of one that is too long; none where it has not come.
    pub(super) fn request_id(&self) -> Option<String> {
        // an id that is cut within a letter ends before it
        let id = self.request_id.utf8_chunks().next()?.valid();
        (!id.is_empty()).then(|| id.to_owned())
    }

    fn excess(&self) -> Option<Refusal> {
        match () {
            () if self.samples > self.bounds.samples => Some(Refusal::Samples),
            () if self.parts > self.bounds.parts => Some(Refusal::Parts),
            () => None,
        }
    }

    fn skip(&mut self, kind: Kind, bytes: &[u8]) {
        self.position += bytes.len() as u64;
        match kind {
            Kind::Numbers(width) => {
                self.number_bytes += width * bytes.iter().filter(|byte| **byte < 0x80).count();
            }
            Kind::RequestId => {
                let room = MAX_NAME_BYTES.saturating_sub(self.request_id.len());
                self.request_id.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Kind::Message(_) | Kind::Sample(_) | Kind::Strings | Kind::Other => {}
        }
    }

    /// Takes one byte of a tag, a length or a number.
    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        match self.state {
            State::Tag(mut tag) => match tag.push(byte)? {
                None => Ok(State::Tag(tag)),
                Some(tag) => self.begin(tag),
            },
            State::Length(kind, mut length) => match length.push(byte)? {
                None => Ok(State::Length(kind, length)),
                Some(length) => self.enter(kind, length),
            },
            State::Number(mut number) => match number.push(byte)? {
                None => Ok(State::Number(number)),
                Some(_) => Ok(State::Tag(Varint::default())),
            },
            State::Skip(..) => unreachable!("a field is skipped in runs of bytes"),
        }
    }

    /// A field begins.
    fn begin(&mut self, tag: u64) -> Result<State, Refusal> {
        let number = tag >> 3;
        if number == 0 || number > u64::from(u32::MAX >> 3) {
            return Err(Refusal::Malformed("a field has no valid number"));
        }
        let kind = self.fields().kind(number);
        match tag & 7 {
            0 => {
                if let Kind::Numbers(width) = kind {
                    self.number_bytes += width;
                }
                Ok(State::Number(Varint::default()))
            }
            1 => self.enter(Kind::Other, 8),
            2 => Ok(State::Length(kind, Varint::default())),
            5 => self.enter(Kind::Other, 4),
            _ => Err(Refusal::Malformed("a field has no valid wire type")),
        }
    }

    /// A field's content of this length begins.
    fn enter(&mut self, kind: Kind, length: u64) -> Result<State, Refusal> {
        let end = self.position.checked_add(length).filter(|end| *end <= self.end());
        let end = end.ok_or(Refusal::Malformed("a field is longer than what it is part of"))?;
        self.samples += usize::from(matches!(kind, Kind::Sample(_)));
        self.parts += usize::from(matches!(kind, Kind::Sample(_) | Kind::Message(_) | Kind::Strings));
        match kind {
            Kind::Message(fields) | Kind::Sample(fields) => {
                if self.open.len() > MAX_DEPTH {
                    return Err(Refusal::Malformed("its messages are too deep"));
                }
                self.open.push((self.schema.message(fields), end));
                Ok(State::Tag(Varint::default()))
            }
            Kind::RequestId | Kind::Strings | Kind::Numbers(_) | Kind::Other => Ok(State::Skip(kind, length)),
        }
    }

    /// Leaves what ends here.
    fn close(&mut self) -> Result<(), Refusal> {
        if let State::Skip(_, 0) = self.state {
            self.state = State::Tag(Varint::default());
        }
        while self.position == self.end() {
            match self.state {
                State::Tag(Varint { bytes: 0, .. }) => self.open.pop(),
                _ => return Err(Refusal::Malformed("a message ends within a field")),
            };
        }
        Ok(())
    }

    fn fields(&self) -> &'static Fields {
        self.open.last().expect("the request itself stays open").0
    }

    fn end(&self) -> u64 {
        self.open.last().expect("the request itself stays open").1
    }
}

// ---- the contract, as far as it matters here ----

/// What a field holds; a message by its place in the schema.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// An element of the request's list of samples.
    Sample(usize),
    Message(usize),
    /// A string of a list.
    Strings,
    /// A list of numbers, as varints, and what each takes in memory.
    Numbers(usize),
    /// The name that an answer repeats.
    RequestId,
    Other,
}

/// The fields of a message that are not [`Kind::Other`], by number.
struct Fields(Vec<(u64, Kind)>);

impl Fields {
    fn kind(&self, number: u64) -> Kind {
        self.0.iter().find(|field| field.0 == number).map_or(Kind::Other, |field| field.1)
    }
}

/// The messages of a contract, seen from one of them.
pub(in crate::service) struct Schema {
    messages: Vec<Fields>,
    request: usize,
}

impl Schema {
    /// Of the request with this name, whose list of samples, if it has one, is `samples`, and whose own name is `id`.
    pub(in crate::service) fn of(request: &str, samples: Option<&str>, id: &str) -> Self {
        let files = FileDescriptorSet::decode(proto::DESCRIPTOR).expect("our own descriptor");
        let mut messages = Vec::new();
        for file in &files.file {
            collect(&format!(".{}", file.package()), &file.message_type, &mut messages);
        }
        let places: HashMap<&str, usize> =
            messages.iter().enumerate().map(|(index, (name, _))| (name.as_str(), index)).collect();
        let kind = |message: &str, field: &FieldDescriptorProto| {
            let is_list = field.label() == Label::Repeated;
            let is_of_request = message == request;
            match field.r#type() {
                Type::Message if is_of_request && Some(field.name()) == samples => {
                    Kind::Sample(places[field.type_name()])
                }
                Type::Message => Kind::Message(places[field.type_name()]),
                Type::String if is_of_request && field.name() == id => Kind::RequestId,
                Type::String | Type::Bytes if is_list => Kind::Strings,
                Type::String | Type::Bytes => Kind::Other,
                // as many bytes of the wire
                Type::Double | Type::Float | Type::Fixed32 | Type::Fixed64 => Kind::Other,
                Type::Sfixed32 | Type::Sfixed64 => Kind::Other,
                Type::Int64 | Type::Uint64 | Type::Sint64 if is_list => Kind::Numbers(8),
                _ if is_list => Kind::Numbers(4),
                _ => Kind::Other,
            }
        };
        let fields = |(name, message): &(String, &DescriptorProto)| {
            let fields = message.field.iter().map(|field| (field.number() as u64, kind(name, field)));
            Fields(fields.filter(|field| !matches!(field.1, Kind::Other)).collect())
        };
        Self { request: places[request], messages: messages.iter().map(fields).collect() }
    }

    fn request(&self) -> &Fields {
        &self.messages[self.request]
    }

    fn message(&self, index: usize) -> &Fields {
        &self.messages[index]
    }
}

fn collect<'a>(scope: &str, messages: &'a [DescriptorProto], into: &mut Vec<(String, &'a DescriptorProto)>) {
    for message in messages {
        let name = format!("{scope}.{}", message.name());
        collect(&name, &message.nested_type, into);
        into.push((name, message));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::proto::sample::Input;
    use crate::service::grpc::inbound::Wire;

    const BOUNDS: Bounds = Bounds { samples: 3, parts: 20 };

    fn walk(bounds: Bounds) -> Scanner {
        Scanner::new(proto::ScoreRequest::schema(), bounds)
    }

    fn scan(bytes: &[u8], bounds: Bounds) -> (Result<(), Refusal>, Scanner) {
        let mut scanner = walk(bounds);
        let result = scanner.push(bytes).and_then(|()| scanner.finish());
        (result, scanner)
    }

    fn sample(input: Input) -> proto::Sample {
        proto::Sample { id: "s".to_owned(), input: Some(input) }
    }

    fn ids(count: usize) -> proto::Sample {
        sample(Input::TokenIds(proto::TokenIds { ids: (0..count as u32).collect() }))
    }

    fn request(samples: Vec<proto::Sample>) -> proto::ScoreRequest {
        proto::ScoreRequest { request_id: "r".to_owned(), samples, ..Default::default() }
    }

    #[test]
    fn what_a_request_holds_is_counted() {
        let turn = proto::Message { role: "user".to_owned(), ..Default::default() };
        let conversation = proto::Conversation { messages: vec![turn; 4], ..Default::default() };
        let request = request(vec![ids(1000), sample(Input::Conversation(conversation))]);
        let (result, scanner) = scan(&request.encode_to_vec(), BOUNDS);
        assert_eq!(result, Ok(()));
        // two samples, `token_ids`, `conversation`, four turns
        assert_eq!((scanner.samples, scanner.parts, scanner.number_bytes), (2, 8, 4000));
        assert_eq!(scanner.request_id().as_deref(), Some("r"));
    }

    #[test]
    fn numbers_count_as_what_they_become() {
        let contents = proto::inference::InferTensorContents {
            int_contents: vec![-1, 2, 3],
            int64_contents: vec![-1, 1],
            fp32_contents: vec![1.0; 5],
            bytes_contents: vec![Bytes::new(); 7],
            ..Default::default()
        };
        let input = proto::inference::model_infer_request::InferInputTensor {
            shape: vec![1, 2],
            contents: Some(contents),
            ..Default::default()
        };
        let request = proto::inference::ModelInferRequest {
            id: "x".to_owned(),
            inputs: vec![input],
            raw_input_contents: vec![Bytes::new(); 9],
            ..Default::default()
        };
        let schema = Schema::of(".inference.ModelInferRequest", None, "id");
        let mut scanner = Scanner::new(Box::leak(Box::new(schema)), BOUNDS);
        assert_eq!(scanner.push(&request.encode_to_vec()).and_then(|()| scanner.finish()), Ok(()));
        // the input, its contents, 7 and 9 strings; the shape too is a list of numbers
        let expected = (0, 18, 4 * 3 + 8 * 2 + 8 * 2);
        assert_eq!((scanner.samples, scanner.parts, scanner.number_bytes), expected);
        assert_eq!(scanner.request_id().as_deref(), Some("x"));
    }

    #[test]
    fn a_sample_or_a_part_too_many_is_refused() {
        let empty = |count| request(vec![proto::Sample::default(); count]).encode_to_vec();
        assert_eq!(scan(&empty(3), BOUNDS).0, Ok(()));
        assert_eq!(scan(&empty(4), BOUNDS).0, Err(Refusal::Samples));

        let turns =
            proto::Conversation { messages: vec![proto::Message::default(); 100], ..Default::default() };
        let bytes = request(vec![sample(Input::Conversation(turns))]).encode_to_vec();
        assert_eq!(scan(&bytes, BOUNDS).0, Err(Refusal::Parts));
    }

    #[test]
    fn an_id_behind_the_samples_is_found_and_a_long_one_is_cut() {
        let mut bytes =
            proto::ScoreRequest { samples: vec![ids(1); 9], ..Default::default() }.encode_to_vec();
        let id = "é".repeat(200);
        bytes.extend(proto::ScoreRequest { request_id: id, ..Default::default() }.encode_to_vec());
        let mut scanner = walk(BOUNDS);
        let samples = bytes.chunks(5).map(|piece| scanner.push(piece)).filter(Result::is_err).count();
        assert_eq!(samples, 1, "one objection");
        assert_eq!(scanner.request_id(), Some("é".repeat(128)));
    }

    #[test]
    fn nonsense_is_malformed() {
        for (bytes, why) in [
            (&[0x07][..], "field has no valid number"),
            (&[0x0b], "wire type"),
            (&[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "more than 10 bytes"),
            (&[0x12, 0x02, 0x0a, 0x05], "longer than what it is part of"),
            (&[0x12, 0x01, 0x0a], "ends within a field"),
            (&[0x12, 0x05, 0x0a], "ends too early"),
        ] {
            match scan(bytes, BOUNDS).0 {
                Err(Refusal::Malformed(reason)) => assert!(reason.contains(why), "{bytes:?}: {reason}"),
                other => panic!("{bytes:?}: {other:?}"),
            }
        }
    }

    proptest! {
        /// What prost decodes, the walk accepts, however it is cut; and it counts what prost made.
        #[test]
        fn the_walk_agrees_with_prost(bytes in proptest::collection::vec(0_u8..0x30, 0..60), cut in 0_usize..60) {
            let wide = Bounds { samples: usize::MAX, parts: usize::MAX };
            let (result, scanner) = scan(&bytes, wide);
            let mut pieces = walk(wide);
            let (head, tail) = bytes.split_at(cut.min(bytes.len()));
            let in_pieces = pieces.push(head).and_then(|()| pieces.push(tail)).and_then(|()| pieces.finish());
            prop_assert_eq!(result, in_pieces);
            if let Ok(request) = proto::ScoreRequest::decode(&bytes[..]) {
                // groups, which no field of ours is, are the one thing that prost skips and we refuse
                if result != Err(Refusal::Malformed("a field has no valid wire type")) {
                    prop_assert_eq!(result, Ok(()));
                    prop_assert_eq!(scanner.samples, request.samples.len());
                }
            }
        }
    }
}
