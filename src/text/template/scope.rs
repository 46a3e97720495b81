//! Where each name's value is: the rules of jinja2's `idtracking`.
//!
//! jinja2 compiles a template to Python functions (the template, its macros and call blocks, its recursive
//! loops and loop conditions), and a name to a local variable of one of them, by the name and by how deep its
//! scope is nested. A scope that only reads a name uses the variable of a scope outside; one that assigns it
//! has its own, which begins as a copy. What is set in a loop or a block is therefore gone after it, what is
//! set under an `if` is not, and a macro sees its surroundings as they are when it is called.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use super::TemplateError;
use super::ast::{Enter, Expr, For, Frame, Kind, Program, Slot, Step, Stmt, StmtKind, Target};

type Result<T, E = TemplateError> = std::result::Result<T, E>;

/// Level and name: jinja2's `l_1_name`.
type Ident = (usize, Arc<str>);

#[derive(Clone)]
enum Load {
    Parameter,
    Resolve,
    Alias(Ident),
    Undefined,
}

/// What is known of the names of one scope.
#[derive(Clone, Default)]
struct Symbols {
    level: usize,
    /// Which of the functions it is in.
    function: usize,
    refs: HashMap<Arc<str>, Ident>,
    loads: Vec<(Ident, Load)>,
    stores: HashSet<Arc<str>>,
}

pub(super) struct Resolver {
    program: Program,
    scopes: Vec<Symbols>,
    /// The places of variables in each of the functions around here.
    functions: Vec<HashMap<Ident, u16>>,
    /// Loops that `break` can leave, by function.
    loops: Vec<usize>,
}

/// Fails where jinja2 cannot compile: a `break` outside of a loop, `loop` assigned.
pub(super) fn resolve(program: Program) -> Result<Program> {
    let mut resolver = Resolver { program, scopes: Vec::new(), functions: Vec::new(), loops: Vec::new() };
    let mut body = mem::take(&mut resolver.program.body);
    resolver.begin_function();
    resolver.begin_scope();
    resolver.visit_stmts(&mut body);
    let frame = resolver.frame();
    resolver.block(&mut body)?;
    resolver.scopes.pop();
    resolver.program.slots = resolver.end_function();
    resolver.program.frame = frame;
    resolver.program.body = body;
    Ok(resolver.program)
}

impl Resolver {
    fn begin_function(&mut self) {
        self.functions.push(HashMap::new());
        self.loops.push(0);
    }

    /// How many variables it has.
    fn end_function(&mut self) -> usize {
        self.loops.pop();
        self.functions.pop().expect("one was begun").len()
    }

    fn begin_scope(&mut self) {
        let level = self.scopes.len();
        self.scopes.push(Symbols { level, function: self.functions.len() - 1, ..Symbols::default() });
    }

    fn top(&mut self) -> &mut Symbols {
        self.scopes.last_mut().expect("the template's own")
    }

    // --- which names a scope has

    fn find(&self, name: &str) -> Option<Ident> {
        self.scopes.iter().rev().find_map(|scope| scope.refs.get(name)).cloned()
    }

    fn find_outside(&self, name: &str) -> Option<Ident> {
        self.scopes[..self.scopes.len() - 1].iter().rev().find_map(|scope| scope.refs.get(name)).cloned()
    }

    fn define(&mut self, name: &Arc<str>, load: Load) -> Ident {
        let top = self.top();
        let ident = (top.level, Arc::clone(name));
        top.refs.insert(Arc::clone(name), ident.clone());
        top.set_load(ident.clone(), load);
        ident
    }

    fn load(&mut self, name: &Arc<str>) {
        if self.find(name).is_none() {
            self.define(name, Load::Resolve);
        }
    }

    fn store(&mut self, name: &Arc<str>) {
        self.top().stores.insert(Arc::clone(name));
        if !self.top().refs.contains_key(name) {
            let load = self.find_outside(name).map_or(Load::Undefined, Load::Alias);
            self.define(name, load);
        }
    }

    fn declare(&mut self, name: &Arc<str>) -> Ident {
        self.top().stores.insert(Arc::clone(name));
        self.define(name, Load::Parameter)
    }

    fn visit_expr(&mut self, expr: &mut Expr) {
        if let Kind::Name(name, _) = &expr.kind {
            let name = Arc::clone(name);
            self.load(&name);
        }
        expr.children_mut(&mut |child| self.visit_expr(child));
    }

    fn visit_steps(&mut self, steps: &mut [Step]) {
        for step in steps {
            step.children_mut(&mut |child| self.visit_expr(child));
        }
    }

    fn visit_target(&mut self, target: &Target, as_parameter: bool) {
        match target {
            Target::Name(name, _) if as_parameter => drop(self.declare(name)),
            Target::Name(name, _) => self.store(name),
            Target::Attribute(name, ..) => self.load(name),
            Target::Tuple(targets, _) => {
                targets.iter().for_each(|target| self.visit_target(target, as_parameter))
            }
        }
    }

    fn visit_stmts(&mut self, stmts: &mut [Stmt]) {
        for stmt in stmts {
            match &mut stmt.kind {
                StmtKind::Data(_) | StmtKind::Generation(_) | StmtKind::Break | StmtKind::Continue => {}
                StmtKind::Print(printed) => self.visit_expr(printed),
                StmtKind::If { branches, otherwise } => self.visit_if(branches, otherwise),
                StmtKind::Set(target, value) => {
                    self.visit_expr(value);
                    self.visit_target(target, false);
                }
                StmtKind::SetBlock { target, .. } => self.visit_target(target, false),
                StmtKind::With { targets, .. } => {
                    targets.iter_mut().for_each(|(_, value)| self.visit_expr(value));
                }
                StmtKind::FilterBlock { filters, .. } => self.visit_steps(filters),
                StmtKind::For(index) => {
                    let mut iterable = mem::replace(&mut self.program.loops[*index].iterable, nothing());
                    self.visit_expr(&mut iterable);
                    self.program.loops[*index].iterable = iterable;
                }
                StmtKind::Macro(index) => {
                    let name = Arc::clone(&self.program.macros[*index].name);
                    self.store(&name);
                }
                StmtKind::CallBlock { call, .. } => self.visit_expr(call),
            }
        }
    }

    /// Each branch sees the names from before; afterwards the names of all branches are known, and one that
    /// only some branches set begins with its value from outside.
    fn visit_if(&mut self, branches: &mut [(Expr, Vec<Stmt>)], otherwise: &mut [Stmt]) {
        let Some(((test, body), elifs)) = branches.split_first_mut() else { return };
        self.visit_expr(test);
        let mut seen = Vec::new();
        for part in 0..3 {
            let before = self.top().clone();
            match part {
                0 => self.visit_stmts(body),
                1 => {
                    for elif in &mut *elifs {
                        self.visit_if(std::slice::from_mut(elif), &mut []);
                    }
                }
                _ => self.visit_stmts(otherwise),
            }
            seen.push(mem::replace(self.top(), before));
        }
        let mut stores: HashSet<Arc<str>> =
            seen.iter().flat_map(|branch| branch.stores.iter().cloned()).collect();
        stores.retain(|name| !self.top().stores.contains(name));
        for branch in seen {
            let top = self.top();
            top.refs.extend(branch.refs);
            for (ident, load) in branch.loads {
                top.set_load(ident, load);
            }
            top.stores.extend(branch.stores);
        }
        for name in stores {
            let Some(target) = self.find(&name) else { continue };
            let load = self.find_outside(&name).map_or(Load::Resolve, Load::Alias);
            self.top().set_load(target, load);
        }
    }

    // --- from names to places

    fn slot(&mut self, ident: &Ident) -> Slot {
        let function = self.scopes[ident.0].function;
        let places = &mut self.functions[function];
        let next = places.len() as u16;
        let index = *places.entry(ident.clone()).or_insert(next);
        Slot { hops: (self.functions.len() - 1 - function) as u16, index }
    }

    fn frame(&mut self) -> Frame {
        let loads = self.top().loads.clone();
        let mut enter = Vec::with_capacity(loads.len());
        for (ident, load) in loads {
            let entered = match load {
                Load::Parameter => Enter::Given,
                Load::Resolve => Enter::Resolve(Arc::clone(&ident.1)),
                Load::Alias(outer) => Enter::Alias(self.slot(&outer)),
                Load::Undefined => Enter::Missing,
            };
            enter.push((self.slot(&ident), entered));
        }
        Frame { enter }
    }

    fn name(&mut self, name: &str, line: u32) -> Result<Slot> {
        match self.find(name) {
            Some(ident) => Ok(self.slot(&ident)),
            None => {
                Err(TemplateError::new(line, format!("jinja2 cannot compile {name:?} here: set it before")))
            }
        }
    }

    fn expr(&mut self, expr: &mut Expr) -> Result<()> {
        let line = expr.line;
        if let Kind::Name(name, slot) = &mut expr.kind {
            *slot = self.name(name, line)?;
        }
        let mut result = Ok(());
        expr.children_mut(&mut |child| {
            if result.is_ok() {
                result = self.expr(child);
            }
        });
        result
    }

    fn steps(&mut self, steps: &mut [Step]) -> Result<()> {
        let mut result = Ok(());
        for step in steps {
            step.children_mut(&mut |child| {
                if result.is_ok() {
                    result = self.expr(child);
                }
            });
        }
        result
    }

    fn target(&mut self, target: &mut Target, line: u32) -> Result<()> {
        match target {
            Target::Name(name, slot) | Target::Attribute(name, slot, _) => *slot = self.name(name, line)?,
            Target::Tuple(targets, _) => {
                for target in targets {
                    self.target(target, line)?;
                }
            }
        }
        Ok(())
    }

    fn block(&mut self, stmts: &mut [Stmt]) -> Result<()> {
        stmts.iter_mut().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &mut Stmt) -> Result<()> {
        let line = stmt.line;
        match &mut stmt.kind {
            StmtKind::Data(_) => {}
            StmtKind::Print(printed) => self.expr(printed)?,
            StmtKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    self.expr(test)?;
                    self.block(body)?;
                }
                self.block(otherwise)?;
            }
            StmtKind::Set(target, value) => {
                self.target(target, line)?;
                self.expr(value)?;
            }
            StmtKind::SetBlock { target, filters, body, frame } => {
                self.begin_scope();
                self.visit_stmts(body);
                *frame = self.frame();
                self.block(body)?;
                self.steps(filters)?;
                self.scopes.pop();
                self.target(target, line)?;
            }
            StmtKind::With { targets, body, frame } => {
                targets.iter_mut().try_for_each(|(_, value)| self.expr(value))?;
                self.begin_scope();
                targets.iter().for_each(|(target, _)| self.visit_target(target, true));
                self.visit_stmts(body);
                *frame = self.frame();
                targets.iter_mut().try_for_each(|(target, _)| self.target(target, line))?;
                self.block(body)?;
                self.scopes.pop();
            }
            StmtKind::FilterBlock { filters, body, frame } => {
                self.begin_scope();
                self.visit_stmts(body);
                self.visit_steps(filters);
                *frame = self.frame();
                self.block(body)?;
                self.steps(filters)?;
                self.scopes.pop();
            }
            StmtKind::For(index) => self.for_loop(*index)?,
            StmtKind::Macro(index) => {
                self.macro_body(*index)?;
                let name = Arc::clone(&self.program.macros[*index].name);
                self.program.macros[*index].slot = self.name(&name, line)?;
            }
            StmtKind::CallBlock { index, call } => {
                self.macro_body(*index)?;
                self.expr(call)?;
            }
            StmtKind::Generation(index) => self.macro_body(*index)?,
            StmtKind::Break | StmtKind::Continue if self.loops.last() == Some(&0) => {
                let reason = "a break or continue outside of the loop, or in another macro, call block or \
                              {% generation %} than its loop: jinja2 cannot compile it";
                return Err(TemplateError::new(line, reason));
            }
            StmtKind::Break | StmtKind::Continue => {}
        }
        Ok(())
    }

    fn for_loop(&mut self, index: usize) -> Result<()> {
        let mut it = mem::replace(&mut self.program.loops[index], placeholder());
        let line = it.line;
        let mut binds_loop = false;
        let mut look = |name: &str, is_read: bool| binds_loop |= name == "loop" && !is_read;
        names_of_target(&it.target, &mut look);
        each_name(&mut self.program, &mut it.body, &mut look);
        each_name(&mut self.program, &mut it.otherwise, &mut look);
        if binds_loop {
            return Err(TemplateError::new(line, "jinja2 forbids to assign `loop` within a loop"));
        }
        self.expr(&mut it.iterable)?;
        let uses_loop = it.is_recursive || self.undeclared(&mut it.body, &["loop"]).contains("loop");
        if let (Some(test), Some(target)) = (&mut it.test, &mut it.test_target) {
            self.begin_function();
            self.begin_scope();
            self.visit_target(target, true);
            self.visit_expr(test);
            it.test_frame = self.frame();
            self.target(target, line)?;
            self.expr(test)?;
            self.scopes.pop();
            it.test_slots = self.end_function();
        }
        if it.is_recursive {
            self.begin_function();
        }
        self.begin_scope();
        let loop_ident = uses_loop.then(|| self.declare(&"loop".into()));
        self.visit_target(&it.target, true);
        self.visit_stmts(&mut it.body);
        it.frame = self.frame();
        it.loop_slot = loop_ident.map(|ident| self.slot(&ident));
        self.target(&mut it.target, line)?;
        *self.loops.last_mut().expect("of a function") += 1;
        self.block(&mut it.body)?;
        *self.loops.last_mut().expect("of a function") -= 1;
        self.scopes.pop();

        self.begin_scope();
        self.visit_stmts(&mut it.otherwise);
        it.else_frame = self.frame();
        self.block(&mut it.otherwise)?;
        self.scopes.pop();
        if it.is_recursive {
            it.slots = self.end_function();
        }
        self.program.loops[index] = it;
        Ok(())
    }

    fn macro_body(&mut self, index: usize) -> Result<()> {
        let mut parameters = mem::take(&mut self.program.macros[index].parameters);
        let mut body = mem::take(&mut self.program.macros[index].body);
        let line = self.program.macros[index].line;

        let used = self.undeclared(&mut body, &["caller", "kwargs", "varargs"]);

        self.begin_function();
        self.begin_scope();
        for parameter in &parameters {
            self.declare(&parameter.name);
        }
        parameters
            .iter_mut()
            .filter_map(|it| it.default.as_mut())
            .for_each(|default| self.visit_expr(default));
        self.visit_stmts(&mut body);
        let mut special = [None, None, None];
        for (slot, name) in special.iter_mut().zip(["caller", "kwargs", "varargs"]) {
            let explicit = parameters.iter().find(|parameter| &*parameter.name == name);
            match explicit {
                Some(parameter) if name == "caller" && used.contains(name) && parameter.default.is_none() => {
                    let reason = "a macro's parameter `caller` needs a default";
                    return Err(TemplateError::new(line, reason));
                }
                None if used.contains(name) => *slot = Some(self.declare(&name.into())),
                _ => {}
            }
        }
        let frame = self.frame();
        let special = special.map(|ident| ident.map(|ident| self.slot(&ident)));
        for parameter in &mut parameters {
            parameter.slot = self.name(&parameter.name, line)?;
            parameter.default.iter_mut().try_for_each(|default| self.expr(default))?;
        }
        self.block(&mut body)?;
        self.scopes.pop();
        let slots = self.end_function();

        let it = &mut self.program.macros[index];
        (it.parameters, it.body, it.frame, it.slots) = (parameters, body, frame, slots);
        [it.caller, it.kwargs, it.varargs] = special;
        Ok(())
    }

    /// Which of the `names` are read before they are bound, anywhere below.
    fn undeclared(&mut self, body: &mut [Stmt], names: &[&'static str]) -> HashSet<&'static str> {
        let mut wanted: HashSet<&'static str> = names.iter().copied().collect();
        let mut used = HashSet::new();
        each_name(&mut self.program, body, &mut |name, is_read| {
            if !is_read {
                wanted.remove(name);
            } else if let Some(name) = wanted.get(name) {
                used.insert(*name);
            }
        });
        used
    }
}

impl Symbols {
    fn set_load(&mut self, ident: Ident, load: Load) {
        match self.loads.iter_mut().find(|(known, _)| *known == ident) {
            Some((_, known)) => *known = load,
            None => self.loads.push((ident, load)),
        }
    }
}

/// Calls `each` with every name below, in jinja2's order, and whether it is read there, not bound.
pub(super) fn each_name(program: &mut Program, stmts: &mut [Stmt], each: &mut dyn FnMut(&str, bool)) {
    for stmt in stmts {
        match &mut stmt.kind {
            StmtKind::Data(_) | StmtKind::Break | StmtKind::Continue => {}
            StmtKind::Print(printed) => names_of_expr(printed, each),
            StmtKind::If { branches, otherwise } => {
                for (test, body) in branches {
                    names_of_expr(test, each);
                    each_name(program, body, each);
                }
                each_name(program, otherwise, each);
            }
            StmtKind::Set(target, value) => {
                names_of_target(target, each);
                names_of_expr(value, each);
            }
            StmtKind::SetBlock { target, filters, body, .. } => {
                names_of_target(target, each);
                names_of_steps(filters, each);
                each_name(program, body, each);
            }
            StmtKind::With { targets, body, .. } => {
                targets.iter().for_each(|(target, _)| names_of_target(target, each));
                targets.iter_mut().for_each(|(_, value)| names_of_expr(value, each));
                each_name(program, body, each);
            }
            StmtKind::FilterBlock { filters, body, .. } => {
                each_name(program, body, each);
                names_of_steps(filters, each);
            }
            StmtKind::For(index) => {
                let mut it = mem::replace(&mut program.loops[*index], placeholder());
                names_of_target(&it.target, each);
                names_of_expr(&mut it.iterable, each);
                each_name(program, &mut it.body, each);
                each_name(program, &mut it.otherwise, each);
                it.test.iter_mut().for_each(|test| names_of_expr(test, each));
                program.loops[*index] = it;
            }
            StmtKind::Macro(index) | StmtKind::Generation(index) => names_of_macro(program, *index, each),
            StmtKind::CallBlock { index, call } => {
                names_of_expr(call, each);
                names_of_macro(program, *index, each);
            }
        }
    }
}

fn names_of_macro(program: &mut Program, index: usize, each: &mut dyn FnMut(&str, bool)) {
    let mut parameters = mem::take(&mut program.macros[index].parameters);
    let mut body = mem::take(&mut program.macros[index].body);
    parameters.iter().for_each(|parameter| each(&parameter.name, false));
    parameters
        .iter_mut()
        .filter_map(|it| it.default.as_mut())
        .for_each(|default| names_of_expr(default, each));
    each_name(program, &mut body, each);
    program.macros[index].parameters = parameters;
    program.macros[index].body = body;
}

fn names_of_expr(expr: &mut Expr, each: &mut dyn FnMut(&str, bool)) {
    if let Kind::Name(name, _) = &expr.kind {
        each(name, true);
    }
    expr.children_mut(&mut |child| names_of_expr(child, each));
}

fn names_of_steps(steps: &mut [Step], each: &mut dyn FnMut(&str, bool)) {
    steps.iter_mut().for_each(|step| step.children_mut(&mut |child| names_of_expr(child, each)));
}

fn names_of_target(target: &Target, each: &mut dyn FnMut(&str, bool)) {
    match target {
        Target::Name(name, _) => each(name, false),
        Target::Attribute(..) => {}
        Target::Tuple(targets, _) => targets.iter().for_each(|target| names_of_target(target, each)),
    }
}

fn nothing() -> Expr {
    Expr { line: 0, kind: Kind::None }
}

/// Stands for a loop while it is being looked at.
fn placeholder() -> For {
    For {
        line: 0,
        target: Target::Tuple(Vec::new(), 0),
        iterable: nothing(),
        test: None,
        is_recursive: false,
        body: Vec::new(),
        otherwise: Vec::new(),
        frame: Frame::default(),
        else_frame: Frame::default(),
        loop_slot: None,
        test_target: None,
        test_frame: Frame::default(),
        test_slots: 0,
        slots: 0,
    }
}
