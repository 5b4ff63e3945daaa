//! One row as text fields with storage classes.

use std::fmt;

/// What a field is. PostgreSQL has only `Null`, `Text` and `Unchanged`; SQLite keeps each value's storage class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// NULL.
    Null,
    /// A change that does not repeat this column: its value is the one before.
    Unchanged,
    /// Text, as it is.
    Text,
    /// A 64-bit integer in decimal.
    Integer,
    /// A double in the shortest decimal form that reads back equal; `Infinity` and `-Infinity`.
    Real,
    /// Bytes, as they are.
    Blob,
}

impl Class {
    /// The letter that stands for it in COPY lines.
    pub const fn letter(self) -> u8 {
        match self {
            Self::Null => b'n',
            Self::Unchanged => b'u',
            Self::Text => b't',
            Self::Integer => b'i',
            Self::Real => b'r',
            Self::Blob => b'b',
        }
    }

    /// The class of a letter.
    pub const fn from_letter(letter: u8) -> Option<Self> {
        Some(match letter {
            b'n' => Self::Null,
            b'u' => Self::Unchanged,
            b't' => Self::Text,
            b'i' => Self::Integer,
            b'r' => Self::Real,
            b'b' => Self::Blob,
            _ => return None,
        })
    }
}

/// One value, unescaped. `bytes` is empty for `Null` and `Unchanged`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Field<'a> {
    /// What it is.
    pub class: Class,
    /// Its text or bytes.
    pub bytes: &'a [u8],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Span {
    class: Class,
    end: u32,
}

/// The stored columns of one row, in table order, in two allocations.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Row {
    bytes: Box<[u8]>,
    spans: Box<[Span]>,
}

impl Row {
    /// Number of fields.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether it has no fields.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Field `index`, if there is one.
    pub fn get(&self, index: usize) -> Option<Field<'_>> {
        let span = self.spans.get(index)?;
        let start = if index == 0 { 0 } else { self.spans[index - 1].end as usize };
        Some(Field { class: span.class, bytes: &self.bytes[start..span.end as usize] })
    }

    /// All fields in order.
    pub fn fields(&self) -> impl ExactSizeIterator<Item = Field<'_>> {
        let mut start = 0;
        self.spans.iter().map(move |span| {
            let bytes = &self.bytes[start..span.end as usize];
            start = span.end as usize;
            Field { class: span.class, bytes }
        })
    }

    /// Bytes that it holds on the heap, for budgets.
    pub fn heap_bytes(&self) -> usize {
        self.bytes.len() + self.spans.len() * size_of::<Span>()
    }
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |field: Field<'_>| {
            format!("{}:{}", field.class.letter() as char, String::from_utf8_lossy(field.bytes))
        };
        f.debug_list().entries(self.fields().map(show)).finish()
    }
}

/// Builds rows field by field; reusable.
#[derive(Debug, Default)]
pub struct RowBuilder {
    bytes: Vec<u8>,
    spans: Vec<(Class, u32)>,
}

impl RowBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a field. The bytes of `Null` and `Unchanged` are ignored.
    ///
    /// # Panics
    /// When the row exceeds 4 GiB, which is above SQLite's and PostgreSQL's limit of one row.
    pub fn push(&mut self, class: Class, bytes: &[u8]) -> &mut Self {
        if !matches!(class, Class::Null | Class::Unchanged) {
            self.bytes.extend_from_slice(bytes);
        }
        self.close_field(class);
        self
    }

    /// Where the bytes of the next field are to be appended; [`Self::close_field`] ends it.
    pub(crate) fn open_field(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Ends the field whose bytes were appended since the last one.
    pub(crate) fn close_field(&mut self, class: Class) {
        #[expect(clippy::expect_used, reason = "rows of both databases are far below 4 GiB")]
        let end = u32::try_from(self.bytes.len()).expect("row below 4 GiB");
        self.spans.push((class, end));
    }

    /// Forgets the fields pushed so far.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
    }

    /// Takes the row built so far and starts anew.
    pub fn take(&mut self) -> Row {
        let spans = self.spans.iter().map(|&(class, end)| Span { class, end }).collect();
        let row = Row { bytes: self.bytes.as_slice().into(), spans };
        self.clear();
        row
    }
}
