//! What Python calls white space.

/// Python counts the four ASCII separators as whitespace, Unicode's `White_Space` does not.
pub(super) fn is_whitespace(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
