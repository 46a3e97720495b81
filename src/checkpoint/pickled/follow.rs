//! Follows a pickle with candle's unpickler, one instruction at a time, each looked at before, and what it made after: so that no
//! pickle takes more memory, or a deeper stack, than the weights of a model need.

use candle_core::pickle::Object;
use candle_core::pickle::Stack;

/// Objects that are looked at, over all instructions; a thousand tensors are some fifty thousand.
const MAX_VISITS: usize = 1 << 23;
/// Of objects in objects; a parameter of a state dict is eight deep.
const MAX_DEPTH: usize = 64;

/// Follows the pickle.
pub(super) fn unpickle(pickle: &[u8]) -> Result<Object, String> {
    let mut stack = Stack::empty();
    let mut rest = pickle;
    let mut visits = 0;
    let wrong = |what: String| format!("its pickle {what}: save it again with torch, tensors only");
    loop {
        // what is remembered is copied, as often as it is said
        let is_copied = matches!(rest, [b'q' | b'r' | b'h' | b'j', ..]);
        match rest {
            [0x8a, length, ..] if *length > 8 => {
                return Err(wrong(format!("has a number of {length} bytes")));
            }
            [b'X', a, b, c, d, text @ ..] if u32::from_le_bytes([*a, *b, *c, *d]) as usize > text.len() => {
                return Err(wrong("ends in a text".to_owned()));
            }
            // candle takes it for `}`
            [b'd', ..] => return Err(wrong("makes a dictionary as no torch does".to_owned())),
            [0x95 | 0x8c | 0x94, ..] => {
                return Err(wrong("has a newer protocol than torch's own (`pickle_protocol`)".to_owned()));
            }
            _ => {}
        }
        let is_done =
            stack.read(&mut rest).map_err(|error| wrong(format!("cannot be followed ({error})")))?;
        let depth = stack.stack().last().map_or(Ok(0), |last| depth(last, is_copied, &mut visits));
        if depth? > MAX_DEPTH {
            return Err(wrong(format!("has objects in objects, deeper than {MAX_DEPTH}")));
        }
        if is_done {
            return stack.finalize().map_err(|error| wrong(format!("makes nothing ({error})")));
        }
    }
}

/// How deep an object is, and one more visit for each part of it.
fn depth(object: &Object, is_copied: bool, visits: &mut usize) -> Result<usize, String> {
    let mut waiting = vec![(object, 1)];
    let mut deepest = 0;
    // each value was looked at on its own when it was made
    let is_growing = matches!(object, Object::Dict(_) | Object::List(_)) && !is_copied;
    while let Some((object, depth)) = waiting.pop() {
        *visits += 1;
        if *visits > MAX_VISITS {
            return Err(format!("its pickle makes more than {MAX_VISITS} objects: no model has so many"));
        }
        deepest = deepest.max(depth);
        if depth > MAX_DEPTH {
            break;
        }
        let inner = depth + 1;
        match object {
            Object::Dict(pairs) if is_growing && depth == 1 => {
                waiting
                    .extend(pairs.last().into_iter().flat_map(|(key, value)| [(key, inner), (value, inner)]));
            }
            Object::List(values) if is_growing && depth == 1 => {
                waiting.extend(values.last().map(|value| (value, inner)));
            }
            Object::Dict(pairs) => {
                waiting.extend(pairs.iter().flat_map(|(key, value)| [(key, inner), (value, inner)]));
            }
            Object::List(values) | Object::Tuple(values) => {
                waiting.extend(values.iter().map(|value| (value, inner)))
            }
            Object::Reduce { callable, args } | Object::Build { callable, args } => {
                waiting.extend([(&**callable, inner), (&**args, inner)]);
            }
            Object::PersistentLoad(id) => waiting.push((id, inner)),
            _ => {}
        }
    }
    Ok(deepest)
}
