//! Whether a page is well-formed.

/// Start tags and end tags match, but for the elements that have none.
pub(crate) fn assert_balanced(page: &str) {
    const VOID: [&str; 4] = ["meta", "input", "br", "!DOCTYPE"];
    let mut open: Vec<&str> = Vec::new();
    let mut rest = page;
    while let Some(at) = rest.find('<') {
        rest = &rest[at + 1..];
        // Style and script hold no markup; their contents are the page's own.
        let name = rest.split(['>', ' ', '\n']).next().unwrap();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "before {}", &rest[..rest.len().min(80)]);
        } else if name == "script" || name == "style" {
            rest = &rest[rest.find(&format!("</{name}>")).unwrap() + 1..];
        } else if name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '!')
            && !VOID.contains(&name)
        {
            open.push(name);
        }
    }
    assert_eq!(open, Vec::<&str>::new());
}
