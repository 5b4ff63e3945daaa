//! Format versions of everything Muster persists.

/// The version that this build writes of every document; it reads this one and all below it.
pub const FORMAT: u32 = 1;

/// A document of a later Muster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} has format {found}, newer than the {FORMAT} that this muster understands; \
     use the muster version that wrote it, or a later one"
)]
pub struct NewerFormat {
    /// What was read, by name or key.
    pub what: String,
    /// The format found there.
    pub found: u32,
}

/// Refuses a document of a later format.
///
/// # Errors
/// [`NewerFormat`] when `found` is above [`FORMAT`].
pub fn accept(what: &str, found: u32) -> Result<(), NewerFormat> {
    if found > FORMAT {
        return Err(NewerFormat { what: what.to_owned(), found });
    }
    Ok(())
}
