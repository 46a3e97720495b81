//! Refuses, when a template is loaded, what it uses and we do not have, by name and line.
//!
//! What Python or jinja2 has and we do not is refused wherever it stands: it would fail for some samples and
//! not for others. What jinja2 does not have either (a filter or a function of another program) is an error
//! only where it is reached, as with jinja2: templates carry such things in branches that are never taken.
//! Where it is certain to be reached, by every sample, the template is refused.

use std::collections::HashSet;
use std::time::SystemTime;

use super::ast::{Expr, Kind, Program, Step, StepKind, Stmt, StmtKind, Target};
use super::scope::each_name;
use super::{TemplateError, access, clock, names};

type Result<T = (), E = TemplateError> = std::result::Result<T, E>;

/// Where an expression stands.
#[derive(Clone, Copy)]
struct Place {
    /// Right below an `if`, where jinja2 looks for filters when they are used, not before.
    is_soft: bool,
    /// Reached by every sample.
    is_certain: bool,
}

impl Place {
    /// In a scope of its own, that may not be entered.
    const INNER: Self = Self { is_soft: false, is_certain: false };

    fn branch(self) -> Self {
        Self { is_soft: true, is_certain: false }
    }

    fn perhaps(self) -> Self {
        Self { is_certain: false, ..self }
    }
}

struct Check {
    /// Names that the template itself gives a value.
    bound: HashSet<String>,
    /// Attributes that it gives to namespaces, which may be macros.
    attributes: HashSet<String>,
}

pub(super) fn check(program: &mut Program) -> Result {
    let mut body = std::mem::take(&mut program.body);
    let mut check = Check { bound: HashSet::new(), attributes: HashSet::new() };
    each_name(program, &mut body, &mut |name, is_read| {
        if !is_read {
            check.bound.insert(name.to_owned());
        }
    });
    check.bound.extend(program.macros.iter().map(|it| it.name.to_string()));
    check.bound.extend(["loop", "caller", "varargs", "kwargs"].map(String::from));
    let mut loops = std::mem::take(&mut program.loops);
    let mut macros = std::mem::take(&mut program.macros);
    check.collect_attributes(&body);
    loops.iter().for_each(|it| check.collect_attributes(&it.body));
    macros.iter().for_each(|it| check.collect_attributes(&it.body));

    let mut result = check.block(&mut body, Place { is_soft: false, is_certain: true });
    for it in &mut loops {
        let outside = Place { is_soft: false, is_certain: false };
        result = result
            .and_then(|()| check.expr(&mut it.iterable, outside))
            .and_then(|()| it.test.as_mut().map_or(Ok(()), |test| check.expr(test, Place::INNER)))
            .and_then(|()| check.block(&mut it.body, Place::INNER))
            .and_then(|()| check.block(&mut it.otherwise, Place::INNER));
    }
    for it in &mut macros {
        let mut defaults = it.parameters.iter_mut().filter_map(|parameter| parameter.default.as_mut());
        result = result
            .and_then(|()| defaults.try_for_each(|default| check.expr(default, Place::INNER)))
            .and_then(|()| check.block(&mut it.body, Place::INNER));
    }
    (program.body, program.loops, program.macros) = (body, loops, macros);
    result
}

impl Check {
    fn collect_attributes(&mut self, body: &[Stmt]) {
        for stmt in body {
            match &stmt.kind {
                StmtKind::Set(target, value) => {
                    self.collect_target(target);
                    // namespace(name=macro)
                    if let Kind::Postfix(_, steps) = &value.kind {
                        for step in steps {
                            if let StepKind::Call(args) = &step.kind {
                                self.attributes
                                    .extend(args.keywords.iter().map(|(name, _)| name.to_string()));
                            }
                        }
                    }
                }
                StmtKind::If { branches, otherwise } => {
                    branches.iter().for_each(|(_, body)| self.collect_attributes(body));
                    self.collect_attributes(otherwise);
                }
                StmtKind::SetBlock { target, body, .. } => {
                    self.collect_target(target);
                    self.collect_attributes(body);
                }
                StmtKind::With { body, .. } | StmtKind::FilterBlock { body, .. } => {
                    self.collect_attributes(body)
                }
                _ => {}
            }
        }
    }

    fn collect_target(&mut self, target: &Target) {
        match target {
            Target::Attribute(_, _, attribute) => _ = self.attributes.insert(attribute.to_string()),
            Target::Tuple(targets, _) => targets.iter().for_each(|target| self.collect_target(target)),
            Target::Name(..) => {}
        }
    }

    fn block(&self, body: &mut [Stmt], place: Place) -> Result {
        body.iter_mut().try_for_each(|stmt| self.stmt(stmt, place))
    }

    fn stmt(&self, stmt: &mut Stmt, place: Place) -> Result {
        match &mut stmt.kind {
            StmtKind::Print(value) | StmtKind::Set(_, value) => self.expr(value, place),
            StmtKind::If { branches, otherwise } => {
                for (number, (test, body)) in branches.iter_mut().enumerate() {
                    let is_certain = place.is_certain && number == 0;
                    self.expr(test, Place { is_soft: true, is_certain })?;
                    self.block(body, place.branch())?;
                }
                self.block(otherwise, place.branch())
            }
            StmtKind::SetBlock { filters, body, .. } | StmtKind::FilterBlock { filters, body, .. } => {
                let inner = Place { is_soft: false, ..place };
                self.block(body, inner)?;
                self.steps(filters, inner)
            }
            StmtKind::With { targets, body, .. } => {
                targets.iter_mut().try_for_each(|(_, value)| self.expr(value, place))?;
                self.block(body, Place { is_soft: false, ..place })
            }
            StmtKind::CallBlock { call, .. } => self.expr(call, place),
            // loops and macros are looked at one by one
            StmtKind::For(_)
            | StmtKind::Macro(_)
            | StmtKind::Generation(_)
            | StmtKind::Data(_)
            | StmtKind::Break
            | StmtKind::Continue => Ok(()),
        }
    }

    fn expr(&self, expr: &mut Expr, place: Place) -> Result {
        match &mut expr.kind {
            Kind::If { test, then, otherwise } => {
                self.expr(test, Place { is_soft: true, ..place })?;
                self.expr(then, place.branch())?;
                otherwise.as_mut().map_or(Ok(()), |otherwise| self.expr(otherwise, place.branch()))
            }
            Kind::And(operands) | Kind::Or(operands) => {
                operands.iter_mut().enumerate().try_for_each(|(number, operand)| {
                    self.expr(operand, if number == 0 { place } else { place.perhaps() })
                })
            }
            Kind::Binary(first, rest)
                if matches!(rest.first(), Some(("**", power)) if !is_number(power))
                    && matches!(&first.kind, Kind::Neg(number) if is_number(number)) =>
            {
                fail(
                    expr.line,
                    "a negative number before ** is another number to jinja2: give it a name with `set`",
                )
            }
            Kind::Name(name, _) if &**name == "self" && !self.bound.contains("self") => {
                fail(expr.line, "`self` is not supported: a chat template has no blocks")
            }
            Kind::Postfix(base, steps) => {
                self.expr(base, place)?;
                if let (Kind::Name(name, _), Some(Step { kind: StepKind::Call(args), line })) =
                    (&base.kind, steps.first())
                {
                    self.function(name, args.positional.first(), *line, place)?;
                }
                self.steps(steps, place)
            }
            _ => {
                let mut result = Ok(());
                expr.children_mut(&mut |child| {
                    if result.is_ok() {
                        result = self.expr(child, place);
                    }
                });
                result
            }
        }
    }

    fn steps(&self, steps: &mut [Step], place: Place) -> Result {
        for number in 0..steps.len() {
            let is_called = matches!(steps.get(number + 1), Some(Step { kind: StepKind::Call(_), .. }));
            let step = &mut steps[number];
            let line = step.line;
            match &step.kind {
                StepKind::Attribute(name) if is_called => self.method(name, line, place)?,
                StepKind::Filter(name, args) => {
                    self.filter(name, line, place)?;
                    let first = args.positional.first().map(|first| &first.kind);
                    if let (Some(Kind::Str(name)), "map") = (first, &**name) {
                        self.filter(name, line, Place { is_soft: true, ..place })?;
                    }
                }
                StepKind::Test { name, .. } if !names::TESTS.contains(&&**name) && !place.is_soft => {
                    return fail(line, format!("no test is named {name:?}"));
                }
                _ => {}
            }
            let mut result = Ok(());
            step.children_mut(&mut |child| {
                if result.is_ok() {
                    result = self.expr(child, place);
                }
            });
            result?;
        }
        Ok(())
    }

    fn filter(&self, name: &str, line: u32, place: Place) -> Result {
        if names::FILTERS_MISSING.contains(&name) {
            return fail(
                line,
                format!("the filter {name:?} is not supported: write the template without it"),
            );
        }
        if !names::FILTERS.contains(&name) && (place.is_certain || !place.is_soft) {
            return fail(line, format!("no filter is named {name:?}"));
        }
        Ok(())
    }

    fn function(&self, name: &str, first: Option<&Expr>, line: u32, place: Place) -> Result {
        if self.bound.contains(name) {
            return Ok(());
        }
        if name == "lipsum" {
            return fail(line, "the function \"lipsum\" is not supported: its text is random");
        }
        if !names::FUNCTIONS.contains(&name) && place.is_certain {
            return fail(
                line,
                format!("no function is named {name:?}, and the template calls it for every sample"),
            );
        }
        if let ("strftime_now", Some(Kind::Str(format))) = (name, first.map(|first| &first.kind))
            && clock::strftime(format, SystemTime::UNIX_EPOCH).is_err()
        {
            let reason = format!("strftime_now does not know all of {:?}", format.as_str());
            return fail(line, reason);
        }
        Ok(())
    }

    fn method(&self, name: &str, line: u32, place: Place) -> Result {
        if self.attributes.contains(name) {
            return Ok(());
        }
        if names::METHODS_MISSING.contains(&name) {
            return fail(
                line,
                format!("the method {name:?} is not supported: write the template without it"),
            );
        }
        if !place.is_certain {
            return Ok(());
        }
        if names::METHODS_FORBIDDEN.contains(&name) {
            let reason = "would change a list or a mapping, which the sandbox of transformers forbids: build \
                          another one, with `+` or a namespace";
            return fail(line, format!("the method {name:?} {reason}"));
        }
        let is_known = access::is_method(name) || ["cycle", "changed"].contains(&name);
        match is_known {
            true => Ok(()),
            false => fail(
                line,
                format!("nothing has a method {name:?}, and the template calls it for every sample"),
            ),
        }
    }
}

fn is_number(expr: &Expr) -> bool {
    matches!(expr.kind, Kind::Int(_) | Kind::Float(_))
}

fn fail<T>(line: u32, reason: impl Into<String>) -> Result<T> {
    Err(TemplateError::new(line, reason))
}
