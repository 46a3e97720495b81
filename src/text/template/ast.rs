//! The tree of a template. Names are words until `scope` finds where their values are.

use std::sync::Arc;

use super::value::Str;

/// A variable: in which function outwards, and where there.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Slot {
    pub(super) hops: u16,
    pub(super) index: u16,
}

#[derive(Debug)]
pub(super) struct Expr {
    pub(super) line: u32,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Str),
    Name(Arc<str>, Slot),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Neg(Box<Expr>),
    Pos(Box<Expr>),
    /// From left to right.
    Binary(Box<Expr>, Vec<(&'static str, Expr)>),
    Concat(Vec<Expr>),
    /// `a < b in c`; the operators are `not in` and Python's.
    Compare(Box<Expr>, Vec<(&'static str, Expr)>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    If {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
    /// What follows a value: `.a`, `[b]`, `(c)`, `|d`, `is e`.
    Postfix(Box<Expr>, Vec<Step>),
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) line: u32,
    pub(super) kind: StepKind,
}

#[derive(Debug)]
pub(super) enum StepKind {
    Attribute(Arc<str>),
    Item(Expr),
    Slice([Option<Box<Expr>>; 3]),
    Call(Args),
    Filter(Arc<str>, Args),
    Test { name: Arc<str>, args: Args, is_negated: bool },
}

#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Expr>,
    pub(super) keywords: Vec<(Arc<str>, Expr)>,
    /// `*args`
    pub(super) rest: Option<Box<Expr>>,
    /// `**kwargs`
    pub(super) rest_keywords: Option<Box<Expr>>,
}

#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) line: u32,
    pub(super) kind: StmtKind,
}

#[derive(Debug)]
pub(super) enum StmtKind {
    Data(Box<str>),
    Print(Expr),
    If {
        branches: Vec<(Expr, Vec<Stmt>)>,
        otherwise: Vec<Stmt>,
    },
    Set(Target, Expr),
    SetBlock {
        target: Target,
        filters: Vec<Step>,
        body: Vec<Stmt>,
        frame: Frame,
    },
    With {
        targets: Vec<(Target, Expr)>,
        body: Vec<Stmt>,
        frame: Frame,
    },
    FilterBlock {
        filters: Vec<Step>,
        body: Vec<Stmt>,
        frame: Frame,
    },
    /// An index into [`Program::loops`].
    For(usize),
    /// An index into [`Program::macros`].
    Macro(usize),
    /// The macro is the block; the call is what it is given to.
    CallBlock {
        index: usize,
        call: Expr,
    },
    /// `{% generation %}`: a call block whose macro is called at once.
    Generation(usize),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) enum Target {
    Name(Arc<str>, Slot),
    /// `namespace.attribute`
    Attribute(Arc<str>, Slot, Arc<str>),
    Tuple(Vec<Target>, u32),
}

/// What happens to variables where a scope begins; where it ends, they have no value.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub(super) enter: Vec<(Slot, Enter)>,
}

#[derive(Debug)]
pub(super) enum Enter {
    /// A parameter, which whoever enters sets.
    Given,
    /// From the variables of the template, or the globals.
    Resolve(Arc<str>),
    /// From a scope outside.
    Alias(Slot),
    Missing,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) line: u32,
    pub(super) target: Target,
    pub(super) iterable: Expr,
    pub(super) test: Option<Expr>,
    pub(super) is_recursive: bool,
    pub(super) body: Vec<Stmt>,
    pub(super) otherwise: Vec<Stmt>,
    pub(super) frame: Frame,
    pub(super) else_frame: Frame,
    /// Where `loop` is, if it is used.
    pub(super) loop_slot: Option<Slot>,
    /// The condition is a function of its own, with the target's variables once more.
    pub(super) test_target: Option<Target>,
    pub(super) test_frame: Frame,
    pub(super) test_slots: usize,
    /// Variables of a recursive loop, which is a function.
    pub(super) slots: usize,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) line: u32,
    pub(super) name: Arc<str>,
    pub(super) slot: Slot,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Vec<Stmt>,
    pub(super) frame: Frame,
    /// Whether the body uses them without declaring them, and where they are.
    pub(super) caller: Option<Slot>,
    pub(super) kwargs: Option<Slot>,
    pub(super) varargs: Option<Slot>,
    pub(super) slots: usize,
}

#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) name: Arc<str>,
    pub(super) slot: Slot,
    pub(super) default: Option<Expr>,
}

#[derive(Debug, Default)]
pub(super) struct Program {
    pub(super) body: Vec<Stmt>,
    pub(super) loops: Vec<For>,
    pub(super) macros: Vec<Macro>,
    pub(super) frame: Frame,
    pub(super) slots: usize,
}

impl Expr {
    /// Every expression right below this one.
    pub(super) fn children_mut(&mut self, each: &mut dyn FnMut(&mut Expr)) {
        match &mut self.kind {
            Kind::None | Kind::Bool(_) | Kind::Int(_) | Kind::Float(_) | Kind::Str(_) | Kind::Name(..) => {}
            Kind::List(items)
            | Kind::Tuple(items)
            | Kind::Concat(items)
            | Kind::And(items)
            | Kind::Or(items) => {
                items.iter_mut().for_each(each);
            }
            Kind::Dict(pairs) => pairs.iter_mut().for_each(|(key, value)| {
                each(key);
                each(value);
            }),
            Kind::Not(operand) | Kind::Neg(operand) | Kind::Pos(operand) => each(operand),
            Kind::Binary(first, rest) | Kind::Compare(first, rest) => {
                each(first);
                rest.iter_mut().for_each(|(_, operand)| each(operand));
            }
            Kind::If { test, then, otherwise } => {
                each(test);
                each(then);
                otherwise.iter_mut().for_each(|it| each(it));
            }
            Kind::Postfix(base, steps) => {
                each(base);
                steps.iter_mut().for_each(|step| step.children_mut(each));
            }
        }
    }
}

impl Step {
    pub(super) fn children_mut(&mut self, each: &mut dyn FnMut(&mut Expr)) {
        match &mut self.kind {
            StepKind::Attribute(_) => {}
            StepKind::Item(index) => each(index),
            StepKind::Slice(parts) => parts.iter_mut().flatten().for_each(|part| each(part)),
            StepKind::Call(args) | StepKind::Filter(_, args) | StepKind::Test { args, .. } => {
                args.children_mut(each)
            }
        }
    }
}

impl Args {
    fn children_mut(&mut self, each: &mut dyn FnMut(&mut Expr)) {
        self.positional.iter_mut().for_each(&mut *each);
        self.keywords.iter_mut().for_each(|(_, value)| each(value));
        self.rest.iter_mut().chain(&mut self.rest_keywords).for_each(|rest| each(rest));
    }
}
