//! Words for names and texts.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

const COMPANIES: &[&str] = &[
    "Northwind",
    "Juniper",
    "Halcyon",
    "Bluefin",
    "Meridian",
    "Tamarack",
    "Quarry",
    "Lumen",
    "Ostrava",
    "Kestrel",
    "Pinecrest",
    "Solstice",
    "Harbour",
    "Vantage",
    "Zephyr",
    "Cobalt",
    "Marigold",
    "Basalt",
    "Fjord",
    "Saffron",
    "Ember",
    "Granite",
    "Willow",
    "Atlas Peak",
    "Copperfield",
    "Driftwood",
    "Redstart",
    "Silverline",
    "Terrace",
    "Umber",
];
const TRADES: &[&str] = &[
    "Textiles",
    "Logistics",
    "Health",
    "Robotics",
    "Bank",
    "Foods",
    "Energy",
    "Media",
    "Insurance",
    "Rail",
    "Software",
    "Airways",
    "Pharma",
    "Studios",
    "Mining",
    "Telecom",
    "Outdoors",
    "Labs",
    "Shipping",
    "University",
];
const FIRST: &[&str] = &[
    "ada", "boris", "chen", "dilan", "ewa", "femi", "greta", "hugo", "ines", "jonas", "kaya", "lars", "mina",
    "noor", "olga", "pavel", "quynh", "rosa", "sven", "tariq", "uma", "vera", "wim", "xenia", "yusuf", "zoe",
];
const LAST: &[&str] = &[
    "abara", "becker", "costa", "dubois", "eriksen", "farah", "garcia", "hansen", "ito", "jansen",
    "kowalski", "li", "moreau", "nguyen", "okafor", "petrov", "quist", "rossi", "silva", "tanaka", "ueda",
    "varga", "weber", "xu", "yilmaz", "zimmer",
];
const WORDS: &[&str] = &[
    "the",
    "export",
    "fails",
    "when",
    "a",
    "user",
    "renames",
    "report",
    "after",
    "login",
    "import",
    "is",
    "slow",
    "on",
    "mobile",
    "search",
    "shows",
    "old",
    "results",
    "for",
    "archived",
    "projects",
    "please",
    "add",
    "dark",
    "mode",
    "to",
    "dashboard",
    "müssen",
    "prüfen",
    "déjà",
    "vu",
    "naïve",
    "東京",
    "release",
    "notes",
    "tab\there",
    "line\nbreak",
    "back\\slash",
    "it's",
    "\"quoted\"",
    "100%",
    "null",
    "\\N",
    "🚀",
    "queue",
    "times",
    "out",
];

/// One of `words`.
pub(crate) fn one<'a>(rng: &mut ChaCha8Rng, words: &[&'a str]) -> &'a str {
    words[rng.random_range(0..words.len())]
}

/// A customer's name.
pub(crate) fn company(rng: &mut ChaCha8Rng) -> String {
    format!("{} {}", one(rng, COMPANIES), one(rng, TRADES))
}

/// A person, as a user name; `number` makes it unique.
pub(crate) fn username(rng: &mut ChaCha8Rng, number: usize) -> String {
    format!("{}.{}{number}", one(rng, FIRST), one(rng, LAST))
}

/// A few words, among them those that a text format may stumble over.
pub(crate) fn text(rng: &mut ChaCha8Rng, words: usize) -> String {
    let mut text = String::with_capacity(words * 7);
    for index in 0..words {
        if index > 0 {
            text.push(' ');
        }
        text.push_str(one(rng, WORDS));
    }
    text
}

/// Random bytes, up to `most`.
pub(crate) fn blob(rng: &mut ChaCha8Rng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill(bytes.as_mut_slice());
    bytes
}
