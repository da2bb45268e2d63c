//! From the text of a filter to its program. Does not know messages.
//!
//! The language is the subset of SQL-92 conditions that JMS selectors have:
//!
//! ```text
//! condition   = condition OR condition │ condition AND condition │ NOT condition │ ( condition )
//!             │ value (= │ <> │ != │ < │ <= │ > │ >=) value
//!             │ value [NOT] BETWEEN value AND value
//!             │ value [NOT] IN ( literal {, literal} )
//!             │ value [NOT] LIKE text [ESCAPE text]
//!             │ value IS [NOT] NULL
//!             │ TRUE │ FALSE │ field
//! value       = number │ text │ field │ ( value ) │ (+ │ -) value │ value (+ │ - │ * │ / │ %) value
//! field       = word {. word}                  word = letters, digits, _ and $, or anything in "…"
//! ```
//!
//! Operators that wait for their right side are kept in a list, so that nothing here calls itself,
//! and a text may nest no deeper than that list is long.

use ringpost_wire::limits::{
    FILTER_BYTES_MAX, FILTER_DEPTH_MAX, FILTER_NODES_MAX, FILTER_PATTERN_BYTES_MAX,
};
use ringpost_wire::properties::Property;

use super::like::Pattern;
use super::program::{Constant, Program, STACK_MAX, Step};
use super::value::{Arithmetic, Comparison};

/// A filter that was read: its program loads fields by their places in the list.
#[derive(Debug)]
pub(super) struct Parsed {
    pub program: Program,
    pub fields: Vec<Field>,
}

/// What a filter looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Field {
    Header(Box<[u8]>),
    System(System),
    Body(Vec<Box<[u8]>>),
}

/// What a message says besides headers and body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum System {
    Exchange,
    RoutingKey,
    Priority,
    TimestampUs,
    TtlMs,
    BodyBytes,
    Property(Property),
}

impl System {
    /// By the word behind `sys.`. The priority is that of the envelope, not the property.
    fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "exchange" => Self::Exchange,
            "routing_key" => Self::RoutingKey,
            "priority" => Self::Priority,
            "timestamp_us" => Self::TimestampUs,
            "ttl_ms" => Self::TtlMs,
            "body_bytes" => Self::BodyBytes,
            _ => Self::Property(Property::ALL.into_iter().find(|one| one.word() == word)?),
        })
    }

    const WORDS: &str = "exchange, routing_key, priority, timestamp_us, ttl_ms, body_bytes, \
        content_type, content_encoding, delivery_mode, correlation_id, reply_to, expiration, \
        message_id, timestamp, type, user_id, app_id, cluster_id";
}

/// What is known of a value before there is a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Condition,
    Number,
    Text,
    /// A field: anything.
    Any,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Condition => "a condition",
            Self::Number => "a number",
            Self::Text => "a text",
            Self::Any => "a field",
        }
    }
}

/// An operator whose right side has not ended.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Open {
    Paren,
    /// The step that skips the right side.
    Or(usize),
    And(usize),
    Not,
    Compare(Comparison),
    /// Waits for its AND; whether it is negated.
    Between(bool),
    BetweenAnd(bool),
    Compute(Arithmetic),
    Sign(bool),
}

impl Open {
    /// What binds closer has more.
    const fn strength(self) -> u8 {
        match self {
            Self::Paren => 0,
            Self::Or(_) => 1,
            Self::And(_) => 2,
            Self::Not => 3,
            Self::Compare(_) | Self::Between(_) | Self::BetweenAnd(_) => COMPARES,
            Self::Compute(Arithmetic::Add | Arithmetic::Subtract) => 5,
            Self::Compute(_) => 6,
            Self::Sign(_) => 7,
        }
    }
}

const COMPARES: u8 = 4;

#[derive(Clone, PartialEq, Debug)]
enum Token {
    Word(String),
    /// A word in double quotes.
    Quoted(String),
    Text(String),
    Int(i64),
    Float(f64),
    /// `(`, `)`, `,`, `.`, operators.
    Sign(&'static str),
    End,
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// The token that was read, and where it starts.
    token: Token,
    start: usize,
    open: Vec<(Open, usize)>,
    kinds: Vec<Kind>,
    steps: Vec<Step>,
    constants: Vec<Constant>,
    texts: Vec<u8>,
    patterns: Vec<Pattern>,
    fields: Vec<Field>,
    nodes: usize,
}

/// Where something is wrong, in bytes, and what.
type Wrong = (usize, String);

/// Reads a filter.
///
/// # Errors
/// Where the text is wrong and what was expected there, for people.
pub(super) fn parse(text: &[u8]) -> Result<Parsed, String> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(format!(
            "x-filter has {} bytes, at most {FILTER_BYTES_MAX} are allowed",
            text.len()
        ));
    }
    let text = std::str::from_utf8(text).map_err(|_| "x-filter is not UTF-8".to_owned())?;
    let mut parser = Parser {
        text,
        at: 0,
        token: Token::End,
        start: 0,
        open: Vec::new(),
        kinds: Vec::new(),
        steps: Vec::new(),
        constants: Vec::new(),
        texts: Vec::new(),
        patterns: Vec::new(),
        fields: Vec::new(),
        nodes: 0,
    };
    match parser.filter() {
        Ok(()) => Ok(Parsed {
            program: Program {
                steps: parser.steps.into(),
                constants: parser.constants.into(),
                texts: parser.texts.into(),
                patterns: parser.patterns.into(),
            },
            fields: parser.fields,
        }),
        Err((at, wrong)) => {
            let place = text[..at.min(text.len())].chars().count() + 1;
            Err(format!("x-filter, character {place}: {wrong}"))
        }
    }
}

impl Parser<'_> {
    fn filter(&mut self) -> Result<(), Wrong> {
        self.read()?;
        loop {
            self.operand()?;
            if self.operator()? {
                break;
            }
        }
        self.want(0, Kind::Condition, "a filter")?;
        assert!(self.open.is_empty() && self.kinds.len() == 1);
        Ok(())
    }

    /// A value, with what stands before it.
    fn operand(&mut self) -> Result<(), Wrong> {
        loop {
            let start = self.start;
            match std::mem::replace(&mut self.token, Token::End) {
                Token::Sign("(") => self.begin(Open::Paren, start)?,
                Token::Sign("-") => self.begin(Open::Sign(true), start)?,
                Token::Sign("+") => self.begin(Open::Sign(false), start)?,
                Token::Word(word) if is_keyword(&word, "NOT") => {
                    let may = self
                        .open
                        .last()
                        .is_none_or(|(open, _)| open.strength() <= Open::Not.strength());
                    if !may {
                        let wrong = "NOT stands before a condition; put it in parentheses";
                        return Err((start, wrong.to_owned()));
                    }
                    self.begin(Open::Not, start)?;
                }
                Token::Word(word) if is_keyword(&word, "TRUE") => {
                    return self.constant(Constant::Bool(true), Kind::Condition);
                }
                Token::Word(word) if is_keyword(&word, "FALSE") => {
                    return self.constant(Constant::Bool(false), Kind::Condition);
                }
                Token::Int(number) => return self.constant(Constant::Int(number), Kind::Number),
                Token::Float(number) => {
                    return self.constant(Constant::Float(number), Kind::Number);
                }
                Token::Text(text) => {
                    let text = self.keep(&text);
                    return self.constant(text, Kind::Text);
                }
                token @ (Token::Word(_) | Token::Quoted(_)) => {
                    if let Token::Word(word) = &token
                        && KEYWORDS.iter().any(|keyword| is_keyword(word, keyword))
                    {
                        self.token = token;
                        return Err(self.expected("a field, number, text, NOT or ("));
                    }
                    let field = self.field(token, start)?;
                    let known = self.fields.iter().position(|one| *one == field);
                    let at = known.unwrap_or_else(|| {
                        self.fields.push(field);
                        self.fields.len() - 1
                    });
                    return self.emit(Step::Load(at as u32), 0, Kind::Any);
                }
                other => {
                    self.token = other;
                    return Err(self.expected("a field, number, text, NOT or ("));
                }
            }
            self.read()?;
        }
    }

    /// What stands behind a value, up to where the next one must follow; whether the text ended.
    fn operator(&mut self) -> Result<bool, Wrong> {
        loop {
            let start = self.start;
            let token = self.token.clone();
            let open = match &token {
                Token::End => {
                    self.close(1)?;
                    let Some((_, at)) = self.open.last() else {
                        return Ok(true);
                    };
                    return Err((*at, "this parenthesis is never closed".to_owned()));
                }
                Token::Sign(")") => {
                    self.close(1)?;
                    if self.open.pop().is_none() {
                        return Err((start, "there is no parenthesis to close".to_owned()));
                    }
                    self.read()?;
                    continue;
                }
                Token::Sign("+") => Open::Compute(Arithmetic::Add),
                Token::Sign("-") => Open::Compute(Arithmetic::Subtract),
                Token::Sign("*") => Open::Compute(Arithmetic::Multiply),
                Token::Sign("/") => Open::Compute(Arithmetic::Divide),
                Token::Sign("%") => Open::Compute(Arithmetic::Remainder),
                Token::Sign("=") => Open::Compare(Comparison::Equal),
                Token::Sign("<>" | "!=") => Open::Compare(Comparison::Unequal),
                Token::Sign("<") => Open::Compare(Comparison::Less),
                Token::Sign("<=") => Open::Compare(Comparison::AtMost),
                Token::Sign(">") => Open::Compare(Comparison::More),
                Token::Sign(">=") => Open::Compare(Comparison::AtLeast),
                Token::Word(word) if is_keyword(word, "OR") => {
                    self.close(Open::Or(0).strength())?;
                    let skip = self.steps.len();
                    self.steps.push(Step::SkipIfTrue(0));
                    Open::Or(skip)
                }
                Token::Word(word) if is_keyword(word, "AND") => {
                    self.close(COMPARES + 1)?;
                    if let Some((open @ Open::Between(_), _)) = self.open.last_mut()
                        && let Open::Between(is_not) = *open
                    {
                        *open = Open::BetweenAnd(is_not);
                        self.read()?;
                        return Ok(false);
                    }
                    self.close(Open::And(0).strength())?;
                    let skip = self.steps.len();
                    self.steps.push(Step::SkipIfFalse(0));
                    Open::And(skip)
                }
                Token::Word(word) => {
                    let is_not = is_keyword(word, "NOT");
                    if is_not {
                        self.read()?;
                    }
                    if self.condition(start, is_not)? {
                        return Ok(false);
                    }
                    continue;
                }
                _ => return Err(self.expected("an operator, AND, OR or the end")),
            };
            let strength = open.strength();
            if strength == COMPARES {
                self.compares(start)?;
            } else {
                self.close(strength)?;
            }
            self.begin(open, start)?;
            self.read()?;
            return Ok(false);
        }
    }

    /// `BETWEEN`, `IN`, `LIKE` or `IS`, perhaps behind `NOT`; whether a value must follow.
    fn condition(&mut self, start: usize, is_not: bool) -> Result<bool, Wrong> {
        let word = match &self.token {
            Token::Word(word) => word.to_ascii_uppercase(),
            _ => String::new(),
        };
        match word.as_str() {
            "BETWEEN" => {
                self.compares(start)?;
                self.begin(Open::Between(is_not), start)?;
                self.read()?;
                return Ok(true);
            }
            "IN" => {
                self.compares(start)?;
                self.read()?;
                self.list()?;
            }
            "LIKE" => {
                self.compares(start)?;
                self.want(0, Kind::Text, "LIKE")?;
                self.read()?;
                self.like()?;
            }
            "IS" if !is_not => {
                self.compares(start)?;
                self.read()?;
                let is_not = matches!(&self.token, Token::Word(word) if is_keyword(word, "NOT"));
                if is_not {
                    self.read()?;
                }
                if !matches!(&self.token, Token::Word(word) if is_keyword(word, "NULL")) {
                    return Err(self.expected("NULL"));
                }
                self.emit(Step::IsNull, 1, Kind::Condition)?;
                return self.negated(is_not);
            }
            _ if is_not => return Err(self.expected("BETWEEN, IN or LIKE")),
            _ => return Err(self.expected("an operator, AND, OR or the end")),
        }
        self.negated(is_not)
    }

    fn negated(&mut self, is_not: bool) -> Result<bool, Wrong> {
        if is_not {
            self.steps.push(Step::Not);
        }
        self.read()?;
        Ok(false)
    }

    /// The constants of `IN`; leaves its last parenthesis.
    fn list(&mut self) -> Result<(), Wrong> {
        if self.token != Token::Sign("(") {
            return Err(self.expected("( and a list"));
        }
        let from = self.constants.len() as u32;
        loop {
            self.read()?;
            let mut sign = 1;
            if let Token::Sign(word @ ("-" | "+")) = self.token {
                sign = if word == "-" { -1 } else { 1 };
                self.read()?;
            }
            let constant = match (self.token.clone(), sign) {
                (Token::Int(number), _) => Constant::Int(number * sign),
                (Token::Float(number), _) => Constant::Float(number * sign as f64),
                (Token::Text(text), 1) => self.keep(&text),
                (Token::Word(word), 1) if is_keyword(&word, "TRUE") => Constant::Bool(true),
                (Token::Word(word), 1) if is_keyword(&word, "FALSE") => Constant::Bool(false),
                _ => return Err(self.expected("a number or a text")),
            };
            self.count()?;
            self.constants.push(constant);
            self.read()?;
            match self.token {
                Token::Sign(",") => {}
                Token::Sign(")") => break,
                _ => return Err(self.expected(", or )")),
            }
        }
        let to = self.constants.len() as u32;
        self.emit(Step::In(from, to), 1, Kind::Condition)
    }

    /// The pattern of `LIKE`; leaves its last token.
    fn like(&mut self) -> Result<(), Wrong> {
        let Token::Text(pattern) = self.token.clone() else {
            return Err(self.expected("a pattern in quotes"));
        };
        let start = self.start;
        if pattern.len() > FILTER_PATTERN_BYTES_MAX {
            let wrong = format!(
                "the pattern has {} bytes, at most {FILTER_PATTERN_BYTES_MAX} are allowed",
                pattern.len()
            );
            return Err((start, wrong));
        }
        let mut escape = None;
        let behind = (self.at, self.start, self.token.clone());
        self.read()?;
        if matches!(&self.token, Token::Word(word) if is_keyword(word, "ESCAPE")) {
            self.read()?;
            let Token::Text(text) = &self.token else {
                return Err(self.expected("one character in quotes"));
            };
            let mut chars = text.chars();
            escape = chars.next();
            if escape.is_none() || chars.next().is_some() {
                return Err((self.start, "ESCAPE takes exactly one character".to_owned()));
            }
        } else {
            (self.at, self.start, self.token) = behind;
        }
        let pattern = Pattern::of(&pattern, escape).map_err(|wrong| (start, wrong))?;
        self.patterns.push(pattern);
        let number = self.patterns.len() as u32 - 1;
        self.emit(Step::Like(number), 1, Kind::Condition)
    }

    /// The rest of a field that starts with this word.
    fn field(&mut self, first: Token, start: usize) -> Result<Field, Wrong> {
        let is_plain = matches!(first, Token::Word(_));
        let (Token::Word(first) | Token::Quoted(first)) = first else {
            unreachable!("the caller looked");
        };
        let mut words = vec![first];
        self.read()?;
        while self.token == Token::Sign(".") {
            self.path_word()?;
            match std::mem::replace(&mut self.token, Token::End) {
                Token::Word(word) | Token::Quoted(word) => words.push(word),
                other => {
                    self.token = other;
                    return Err(self.expected("a word behind the point"));
                }
            }
            self.read()?;
        }
        let bytes = |word: &String| Box::from(word.as_bytes());
        Ok(match (is_plain, words[0].as_str(), words.len()) {
            (true, "sys", 2) => {
                let system = System::of_word(&words[1]).ok_or_else(|| {
                    let wrong = format!("sys.{} is none of {}", words[1], System::WORDS);
                    (start, wrong)
                })?;
                Field::System(system)
            }
            (true, "body", 2..) => Field::Body(words[1..].iter().map(bytes).collect()),
            _ => Field::Header(words.join(".").into_bytes().into()),
        })
    }

    fn constant(&mut self, constant: Constant, kind: Kind) -> Result<(), Wrong> {
        self.emit(Step::Constant(constant), 0, kind)?;
        self.read()
    }

    fn keep(&mut self, text: &str) -> Constant {
        let from = self.texts.len() as u32;
        self.texts.extend_from_slice(text.as_bytes());
        Constant::Text(from, self.texts.len() as u32)
    }

    /// A comparison follows: what binds closer ends, and it is not part of another one.
    fn compares(&mut self, at: usize) -> Result<(), Wrong> {
        self.close(COMPARES + 1)?;
        if self
            .open
            .last()
            .is_some_and(|(open, _)| open.strength() == COMPARES)
        {
            let wrong = match self.open.last() {
                Some((Open::Between(_), _)) => "BETWEEN has no AND",
                _ => "comparisons in a row: put one in parentheses",
            };
            return Err((at, wrong.to_owned()));
        }
        Ok(())
    }

    fn begin(&mut self, open: Open, at: usize) -> Result<(), Wrong> {
        if self.open.len() == FILTER_DEPTH_MAX {
            let wrong = format!("nested deeper than {FILTER_DEPTH_MAX}");
            return Err((at, wrong));
        }
        self.open.push((open, at));
        Ok(())
    }

    /// Ends every operator that binds at least so close.
    fn close(&mut self, strength: u8) -> Result<(), Wrong> {
        while let Some((open, at)) = self.open.last().copied()
            && open.strength() >= strength
        {
            self.open.pop();
            self.end(open, at)?;
        }
        Ok(())
    }

    fn end(&mut self, open: Open, at: usize) -> Result<(), Wrong> {
        let end = self.steps.len() as u32 + 1;
        match open {
            Open::Paren => unreachable!("only its own sign closes it"),
            Open::Or(skip) | Open::And(skip) => {
                let is_or = matches!(open, Open::Or(_));
                let name = if is_or { "OR" } else { "AND" };
                self.want_at(at, 1, Kind::Condition, name)?;
                self.want_at(at, 0, Kind::Condition, name)?;
                self.steps[skip] = match is_or {
                    true => Step::SkipIfTrue(end),
                    false => Step::SkipIfFalse(end),
                };
                self.emit(if is_or { Step::Or } else { Step::And }, 2, Kind::Condition)
            }
            Open::Not => {
                self.want_at(at, 0, Kind::Condition, "NOT")?;
                self.emit(Step::Not, 1, Kind::Condition)
            }
            Open::Compare(by) => {
                let is_equality = matches!(by, Comparison::Equal | Comparison::Unequal);
                self.alike(at, 1, 0, is_equality)?;
                self.emit(Step::Compare(by), 2, Kind::Condition)
            }
            Open::Between(_) => Err((at, "BETWEEN has no AND".to_owned())),
            Open::BetweenAnd(is_not) => {
                self.alike(at, 2, 1, false)?;
                self.alike(at, 2, 0, false)?;
                self.emit(Step::Between, 3, Kind::Condition)?;
                if is_not {
                    self.steps.push(Step::Not);
                }
                Ok(())
            }
            Open::Compute(by) => {
                self.want_at(at, 1, Kind::Number, "arithmetic")?;
                self.want_at(at, 0, Kind::Number, "arithmetic")?;
                self.emit(Step::Compute(by), 2, Kind::Number)
            }
            Open::Sign(is_minus) => {
                self.want_at(at, 0, Kind::Number, "a sign")?;
                match self.steps.last_mut() {
                    _ if !is_minus => Ok(()),
                    Some(Step::Constant(Constant::Int(number))) => {
                        *number = -*number;
                        Ok(())
                    }
                    Some(Step::Constant(Constant::Float(number))) => {
                        *number = -*number;
                        Ok(())
                    }
                    _ => self.emit(Step::Negate, 1, Kind::Number),
                }
            }
        }
    }

    /// Two values can be compared.
    fn alike(&self, at: usize, one: usize, other: usize, is_equality: bool) -> Result<(), Wrong> {
        let kind = |behind: usize| self.kinds[self.kinds.len() - 1 - behind];
        let (one, other) = (kind(one), kind(other));
        let ordered = |kind| is_equality || kind != Kind::Condition;
        let same = one == other || one == Kind::Any || other == Kind::Any;
        if same && ordered(one) && ordered(other) {
            return Ok(());
        }
        let how = if is_equality { "" } else { " in order" };
        let wrong = format!("{} does not compare with {}{how}", one.word(), other.word());
        Err((at, wrong))
    }

    fn want(&self, behind: usize, kind: Kind, who: &str) -> Result<(), Wrong> {
        self.want_at(self.start, behind, kind, who)
    }

    /// The value that is so far down is of this kind, or may be.
    fn want_at(&self, at: usize, behind: usize, kind: Kind, who: &str) -> Result<(), Wrong> {
        let there = self.kinds[self.kinds.len() - 1 - behind];
        if there == kind || there == Kind::Any {
            return Ok(());
        }
        let wrong = format!("{who} needs {}, this is {}", kind.word(), there.word());
        Err((at, wrong))
    }

    /// A step that takes so many values and leaves one.
    fn emit(&mut self, step: Step, takes: usize, kind: Kind) -> Result<(), Wrong> {
        self.count()?;
        self.steps.push(step);
        self.kinds.truncate(self.kinds.len() - takes);
        self.kinds.push(kind);
        assert!(self.kinds.len() <= STACK_MAX);
        Ok(())
    }

    fn count(&mut self) -> Result<(), Wrong> {
        self.nodes += 1;
        if self.nodes > FILTER_NODES_MAX {
            let wrong = format!("more than {FILTER_NODES_MAX} values and operators");
            return Err((self.start, wrong));
        }
        Ok(())
    }

    fn expected(&self, what: &str) -> Wrong {
        let found = match &self.token {
            Token::End => "the end".to_owned(),
            Token::Word(word) => format!("'{}'", word.escape_debug()),
            Token::Quoted(word) => format!("\"{}\"", word.escape_debug()),
            Token::Text(_) => "a text".to_owned(),
            Token::Int(number) => number.to_string(),
            Token::Float(number) => number.to_string(),
            Token::Sign(sign) => format!("'{sign}'"),
        };
        (self.start, format!("expected {what}, found {found}"))
    }

    /// The word behind a point, which may be a number: the place in an array.
    fn path_word(&mut self) -> Result<(), Wrong> {
        let rest = &self.text[self.at..];
        let digits = rest.bytes().take_while(|byte| is_word(*byte)).count();
        if digits == 0 {
            return self.read();
        }
        self.start = self.at;
        self.at += digits;
        self.token = Token::Word(rest[..digits].to_owned());
        Ok(())
    }

    /// Reads the next token.
    fn read(&mut self) -> Result<(), Wrong> {
        const SIGNS: [&str; 17] = [
            "<>", "!=", "<=", ">=", "=", "<", ">", "(", ")", ",", ".", "+", "-", "*", "/", "%", "",
        ];
        let bytes = self.text.as_bytes();
        while bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.start = self.at;
        let rest = &self.text[self.at..];
        let Some(first) = rest.bytes().next() else {
            self.token = Token::End;
            return Ok(());
        };
        let length = |fits: fn(u8) -> bool| rest.bytes().take_while(|byte| fits(*byte)).count();
        match first {
            b'\'' | b'"' => return self.quoted(first),
            b'0'..=b'9' => return self.number(),
            _ if is_word(first) => {
                let bytes = length(is_word);
                self.at += bytes;
                self.token = Token::Word(rest[..bytes].to_owned());
                return Ok(());
            }
            _ => {}
        }
        let sign = SIGNS.into_iter().find(|sign| rest.starts_with(*sign));
        match sign {
            Some("") | None => {
                let char = rest.chars().next().unwrap_or(' ');
                Err((
                    self.at,
                    format!("'{}' means nothing here", char.escape_debug()),
                ))
            }
            Some(sign) => {
                self.at += sign.len();
                self.token = Token::Sign(sign);
                Ok(())
            }
        }
    }

    /// A text or a word in quotes; two quotes within are one.
    fn quoted(&mut self, quote: u8) -> Result<(), Wrong> {
        let quote = char::from(quote);
        let mut text = String::new();
        let mut chars = self.text[self.at + 1..].char_indices().peekable();
        while let Some((at, char)) = chars.next() {
            if char != quote {
                text.push(char);
            } else if chars.next_if(|(_, next)| *next == quote).is_some() {
                text.push(quote);
            } else {
                self.at += at + 2;
                self.token = match quote {
                    '\'' => Token::Text(text),
                    _ if text.is_empty() => {
                        return Err((self.start, "a name is empty".to_owned()));
                    }
                    _ => Token::Quoted(text),
                };
                return Ok(());
            }
        }
        Err((self.start, "this quote is never closed".to_owned()))
    }

    fn number(&mut self) -> Result<(), Wrong> {
        let rest = &self.text.as_bytes()[self.at..];
        let digits = |at: usize| {
            rest[at..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count()
        };
        let mut length = digits(0);
        let mut is_whole = true;
        if rest.get(length) == Some(&b'.') {
            is_whole = false;
            length += 1 + digits(length + 1);
        }
        if matches!(rest.get(length), Some(b'e' | b'E')) {
            let sign = usize::from(matches!(rest.get(length + 1), Some(b'+' | b'-')));
            let power = digits((length + 1 + sign).min(rest.len()));
            if power > 0 {
                is_whole = false;
                length += 1 + sign + power;
            }
        }
        let text = &self.text[self.at..self.at + length];
        if rest.get(length).is_some_and(|byte| is_word(*byte)) {
            return Err((self.at + length, "a number ends in a word".to_owned()));
        }
        self.at += length;
        let float = text.parse().ok().filter(|number: &f64| number.is_finite());
        let token = if is_whole {
            text.parse().ok().map(Token::Int)
        } else {
            float.map(Token::Float)
        };
        self.token = token.ok_or_else(|| (self.start, "this number is too large".to_owned()))?;
        Ok(())
    }
}

const KEYWORDS: [&str; 11] = [
    "AND", "OR", "NOT", "BETWEEN", "IN", "LIKE", "ESCAPE", "IS", "NULL", "TRUE", "FALSE",
];

fn is_keyword(word: &str, keyword: &str) -> bool {
    word.eq_ignore_ascii_case(keyword)
}

/// Letters of every alphabet, digits, `_` and `$`.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}
