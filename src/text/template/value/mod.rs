//! The values of a template: Python's, as far as a sandboxed template can have them.
//!
//! Lists, tuples and mappings cannot be changed once made (the sandbox forbids it), so they are shared. They
//! know how deep they are nested, and a limit on that keeps everything that walks them, `Drop` included, off
//! the end of the stack. Namespaces, loops, iterators and cyclers do change; [`Value::Namespace`] and the
//! macros' scopes are the only ones that could hold themselves, and the renderer empties them at its end.

mod dict;
mod items;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

pub(super) use self::dict::{Dict, Key};
pub(super) use self::items::{Items, Range, View};
use super::meter::{Fault, Held, Result, failed, reserve, spend};

/// Lists in lists. JSON of serde's is at most 128 deep.
const MOST_NESTED: u16 = 300;

#[derive(Clone)]
pub(super) enum Value {
    /// With what is missing, in words that end in "is undefined" or the like.
    Undefined(Missing),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Str),
    List(Seq),
    Tuple(Seq),
    /// One of `groupby`'s: a tuple whose items have names.
    Group(Seq),
    Dict(Rc<Dict>),
    Range(Range),
    /// `dict.keys()`, `dict.values()`, `dict.items()`.
    View(View, Rc<Dict>),
    /// A generator: gives its items once.
    Iter(Rc<RefCell<Items>>, u16),
    Namespace(Rc<RefCell<Dict>>),
    Macro(Rc<MacroValue>),
    Loop(Rc<LoopState>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<Joiner>),
    /// A method that is bound to what it belongs to.
    Method(Rc<(Value, &'static str)>),
    /// A global function.
    Function(&'static str),
}

#[derive(Clone, Debug)]
pub(super) enum Missing {
    Name(Arc<str>),
    Attribute(Arc<str>),
    Because(&'static str),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name:?} is undefined"),
            Self::Attribute(name) => write!(f, "attribute {name:?} is undefined"),
            Self::Because(reason) => f.write_str(reason),
        }
    }
}

/// Text; `markup` is what the filters `safe` and `escape` make: text that escapes what is added to it.
#[derive(Clone, Debug)]
pub(super) struct Str {
    text: Arc<(Box<str>, Held)>,
    pub(super) markup: bool,
}

impl Str {
    pub(super) fn new(text: impl Into<Box<str>>) -> Self {
        let text = text.into();
        let held = Held::new(text.len() + 48);
        Self { text: Arc::new((text, held)), markup: false }
    }

    pub(super) fn with_markup(self, markup: bool) -> Self {
        Self { markup, ..self }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text.0
    }
}

impl std::ops::Deref for Str {
    type Target = str;
    fn deref(&self) -> &str {
        &self.text.0
    }
}

/// The items of a list or a tuple.
#[derive(Clone)]
pub(super) struct Seq(Rc<(Vec<Value>, u16, Held)>);

impl Seq {
    pub(super) fn new(items: Vec<Value>) -> Result<Self> {
        reserve(items.len() * size_of::<Value>())?;
        let depth = nested(items.iter())?;
        let held = Held::new(items.len() * size_of::<Value>() + 48);
        Ok(Self(Rc::new((items, depth, held))))
    }
}

impl std::ops::Deref for Seq {
    type Target = [Value];
    fn deref(&self) -> &[Value] {
        &self.0.0
    }
}

fn nested<'a>(items: impl Iterator<Item = &'a Value>) -> Result<u16> {
    let depth = items.map(Value::depth).max().unwrap_or(0) + 1;
    if depth > MOST_NESTED {
        return failed(format!("values are nested more than {MOST_NESTED} deep"));
    }
    Ok(depth)
}

/// The variables of one call of a macro, of a recursive loop, or of the whole template.
pub(super) struct Scope {
    /// `None` is a variable that has no value yet.
    pub(super) slots: RefCell<Vec<Option<Value>>>,
    /// That of the function around it.
    pub(super) parent: Option<Rc<Scope>>,
    /// Whether a macro holds it, so that the renderer must empty it.
    pub(super) is_captured: Cell<bool>,
}

impl Scope {
    pub(super) fn new(slots: usize, parent: Option<Rc<Self>>) -> Rc<Self> {
        Rc::new(Self { slots: RefCell::new(vec![None; slots]), parent, is_captured: Cell::new(false) })
    }
}

/// A macro with the scope that it was made in.
pub(super) struct MacroValue {
    pub(super) index: usize,
    /// The body of a call block has none.
    pub(super) name: Option<Arc<str>>,
    pub(super) scope: Rc<Scope>,
}

/// The variable `loop`.
pub(super) struct LoopState {
    pub(super) iterable: Value,
    pub(super) items: RefCell<Items>,
    /// A condition in the loop's head: which loop it is of, and where its variables are.
    pub(super) filter: Option<(usize, Rc<Scope>)>,
    /// A recursive loop: which one, and the scope around it.
    pub(super) recurse: Option<(usize, Rc<Scope>)>,
    pub(super) depth0: usize,
    pub(super) index0: Cell<i128>,
    pub(super) length: Cell<Option<usize>>,
    pub(super) before: RefCell<Option<Value>>,
    pub(super) current: RefCell<Option<Value>>,
    /// An item that was asked for before its turn.
    pub(super) after: RefCell<Option<Value>>,
    pub(super) last_changed: RefCell<Option<Vec<Value>>>,
    /// How deep what it goes over is nested.
    depth: u16,
}

impl LoopState {
    pub(super) fn new(
        iterable: Value,
        filter: Option<(usize, Rc<Scope>)>,
        recurse: Option<(usize, Rc<Scope>)>,
        depth0: usize,
    ) -> Result<Rc<Self>> {
        let items = RefCell::new(iterable.iter()?);
        let depth = nested(std::iter::once(&iterable))?;
        Ok(Rc::new(Self {
            iterable,
            items,
            filter,
            recurse,
            depth0,
            index0: Cell::new(-1),
            length: Cell::new(None),
            before: RefCell::default(),
            current: RefCell::default(),
            after: RefCell::default(),
            last_changed: RefCell::default(),
            depth,
        }))
    }
}

pub(super) struct Cycler {
    pub(super) items: Seq,
    pub(super) place: Cell<usize>,
}

pub(super) struct Joiner {
    pub(super) separator: Value,
    pub(super) used: Cell<bool>,
}

impl Value {
    pub(super) fn undefined(reason: &'static str) -> Self {
        Self::Undefined(Missing::Because(reason))
    }

    pub(super) fn list(items: Vec<Self>) -> Result<Self> {
        Ok(Self::List(Seq::new(items)?))
    }

    pub(super) fn tuple(items: Vec<Self>) -> Result<Self> {
        Ok(Self::Tuple(Seq::new(items)?))
    }

    pub(super) fn dict(pairs: impl IntoIterator<Item = (Self, Self)>) -> Result<Self> {
        Ok(Self::Dict(Rc::new(Dict::from_pairs(pairs)?)))
    }

    /// A generator of these items.
    pub(super) fn generator(items: impl IntoIterator<Item = Result<Self>>) -> Result<Self> {
        let mut made: VecDeque<Result<Self>> = VecDeque::new();
        let mut depth = 0;
        for item in items {
            spend(1)?;
            depth = depth.max(item.as_ref().map_or(0, Self::depth));
            let is_last = item.is_err();
            made.push_back(item);
            if is_last {
                break;
            }
        }
        if depth + 1 > MOST_NESTED {
            return failed(format!("values are nested more than {MOST_NESTED} deep"));
        }
        let held = Held::new(made.len() * size_of::<Result<Self>>());
        Ok(Self::Iter(Rc::new(RefCell::new(Items::Made(made, held))), depth + 1))
    }

    /// From JSON; integers stay integers.
    pub(super) fn from_json(json: &serde_json::Value) -> Result<Self> {
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(bool) => Self::Bool(*bool),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(int), ..) => Self::Int(int.into()),
                (_, Some(int), _) => Self::Int(int.into()),
                (.., float) => Self::Float(float.unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => Self::from(text.as_str()),
            serde_json::Value::Array(items) => {
                Self::list(items.iter().map(Self::from_json).collect::<Result<_>>()?)?
            }
            serde_json::Value::Object(map) => {
                let pairs =
                    map.iter().map(|(key, value)| Ok((Self::from(key.as_str()), Self::from_json(value)?)));
                Self::dict(pairs.collect::<Result<Vec<_>>>()?)?
            }
        })
    }

    fn depth(&self) -> u16 {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.0.1,
            Self::Dict(dict) => dict.depth,
            Self::View(_, dict) => dict.depth + 1,
            Self::Iter(_, depth) => *depth,
            Self::Cycler(cycler) => cycler.items.0.1 + 1,
            Self::Joiner(joiner) => joiner.separator.depth() + 1,
            Self::Loop(state) => state.depth,
            Self::Method(method) => method.0.depth() + 1,
            _ => 0,
        }
    }

    /// The name of its type in Python.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(text) => {
                if text.markup {
                    "Markup"
                } else {
                    "str"
                }
            }
            Self::List(_) => "list",
            Self::Tuple(_) | Self::Group(_) => "tuple",
            Self::Dict(_) => "dict",
            Self::Range(_) => "range",
            Self::View(View::Keys, _) => "dict_keys",
            Self::View(View::Values, _) => "dict_values",
            Self::View(View::Items, _) => "dict_items",
            Self::Iter(..) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Method(_) | Self::Function(_) => "function",
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(bool) => *bool,
            Self::Int(int) => *int != 0,
            Self::Float(float) => *float != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(items) | Self::Tuple(items) => !items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => !dict.entries.is_empty(),
            Self::Range(range) => range.len() > 0,
            _ => true,
        }
    }

    /// `len(value)`; `None` where Python raises.
    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) => text.chars().count(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.len(),
            Self::Dict(dict) | Self::View(_, dict) => dict.entries.len(),
            Self::Range(range) => range.len(),
            _ => return None,
        })
    }

    /// `iter(value)`; `None` where Python raises.
    pub(super) fn try_iter(&self) -> Option<Items> {
        Some(match self {
            Self::Undefined(_) => Items::Range(Range { start: 0, stop: 0, step: 1 }, 0),
            Self::Str(text) => Items::Chars(text.clone(), 0),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => Items::Seq(items.clone(), 0),
            Self::Dict(dict) => Items::View(View::Keys, Rc::clone(dict), 0),
            Self::View(view, dict) => Items::View(*view, Rc::clone(dict), 0),
            Self::Range(range) => Items::Range(*range, 0),
            Self::Iter(items, _) => Items::Shared(Rc::clone(items)),
            _ => return None,
        })
    }

    pub(super) fn iter(&self) -> Result<Items> {
        match self.try_iter() {
            Some(items) => Ok(items),
            None => failed(format!("'{}' object is not iterable", self.type_name())),
        }
    }

    pub(super) fn to_vec(&self) -> Result<Vec<Self>> {
        self.iter()?.collect()
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// What using an undefined value as anything but text, a condition or a loop raises.
    pub(super) fn check_defined(&self) -> Result<(), Box<Fault>> {
        match self {
            Self::Undefined(missing) => failed(missing.to_string()),
            _ => Ok(()),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(Str::new(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(Str::new(text))
    }
}

impl From<bool> for Value {
    fn from(bool: bool) -> Self {
        Self::Bool(bool)
    }
}

impl From<usize> for Value {
    fn from(int: usize) -> Self {
        Self::Int(int as i128)
    }
}
