//! Ranges, views of mappings, and iterators.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::super::meter::{Held, Result, failed, reserve, spend};
use super::{Dict, Seq, Str, Value};

#[derive(Clone, Copy, PartialEq)]
pub(in crate::text::template) struct Range {
    pub(in crate::text::template) start: i128,
    pub(in crate::text::template) stop: i128,
    pub(in crate::text::template) step: i128,
}

impl Range {
    pub(in crate::text::template) fn len(self) -> usize {
        let (from, to, step) = if self.step > 0 {
            (self.start, self.stop, self.step)
        } else {
            (self.stop, self.start, -self.step)
        };
        if to <= from { 0 } else { ((to - from - 1) / step + 1).min(usize::MAX as i128) as usize }
    }

    pub(in crate::text::template) fn get(self, index: usize) -> Value {
        Value::Int(self.start + index as i128 * self.step)
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(in crate::text::template) enum View {
    Keys,
    Values,
    Items,
}

/// An iterator over the items of a value.
pub(in crate::text::template) enum Items {
    Seq(Seq, usize),
    Chars(Str, usize),
    Range(Range, usize),
    View(View, Rc<Dict>, usize),
    /// What a generator of a filter gives, or where it fails.
    Made(VecDeque<Result<Value>>, #[expect(dead_code, reason = "counts the memory")] Held),
    Shared(Rc<RefCell<Items>>),
}

impl Items {
    pub(in crate::text::template) fn next(&mut self) -> Result<Option<Value>> {
        spend(1)?;
        Ok(match self {
            Self::Seq(items, place) => {
                *place += 1;
                items.get(*place - 1).cloned()
            }
            Self::Chars(text, place) => {
                let next = text[*place..].chars().next();
                *place += next.map_or(0, char::len_utf8);
                next.map(|c| Value::from(c.encode_utf8(&mut [0; 4]) as &str))
            }
            Self::Range(range, place) => {
                *place += 1;
                (*place <= range.len()).then(|| range.get(*place - 1))
            }
            Self::View(view, dict, place) => {
                *place += 1;
                let Some((key, value)) = dict.entries.get(*place - 1) else { return Ok(None) };
                Some(match view {
                    View::Keys => key.clone(),
                    View::Values => value.clone(),
                    View::Items => Value::Tuple(Seq::new(vec![key.clone(), value.clone()])?),
                })
            }
            Self::Made(items, _) => match items.pop_front() {
                Some(Ok(value)) => Some(value),
                Some(Err(fault)) => {
                    items.clear();
                    return Err(fault);
                }
                None => None,
            },
            Self::Shared(items) => match items.try_borrow_mut() {
                Ok(mut items) => return items.next(),
                Err(_) => return failed("generator already executing"),
            },
        })
    }

    pub(in crate::text::template) fn collect(mut self) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        while let Some(item) = self.next()? {
            all.push(item);
            if all.len() % 1024 == 0 {
                reserve(all.len() * size_of::<Value>())?;
            }
        }
        Ok(all)
    }
}
