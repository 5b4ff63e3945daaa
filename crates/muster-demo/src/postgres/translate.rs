//! Statements with the model's `?1` in PostgreSQL's `$1`.

/// A statement for the server and, for each of its parameters, the place of the value.
///
/// Each mention of a value becomes a parameter of its own: the same value may be a number here and a time there.
pub(super) fn translated(sql: &str) -> (String, Vec<usize>) {
    let (mut text, mut places) = (String::with_capacity(sql.len() + 8), Vec::new());
    let mut letters = sql.chars().peekable();
    let mut quoted = false;
    while let Some(letter) = letters.next() {
        quoted ^= letter == '\'';
        if letter != '?' || quoted {
            text.push(letter);
            continue;
        }
        let mut number = 0;
        while let Some(digit) = letters.peek().and_then(|digit| digit.to_digit(10)) {
            number = number * 10 + digit as usize;
            letters.next();
        }
        debug_assert!(number > 0, "a parameter without a number: {sql}");
        places.push(number.saturating_sub(1));
        text.push_str(&format!("${}", places.len()));
    }
    (text, places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mention_is_a_parameter() {
        let (text, places) = translated("UPDATE t SET a = ?2, b = ?2 || '?' WHERE c = ?1 AND d = ?12");
        assert_eq!(text, "UPDATE t SET a = $1, b = $2 || '?' WHERE c = $3 AND d = $4");
        assert_eq!(places, [1, 1, 0, 11]);
    }
}
