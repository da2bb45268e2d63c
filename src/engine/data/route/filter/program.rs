//! A filter as it runs: a list of steps over a stack. Does not know how it was written, nor where its
//! fields' values come from.
//!
//! ```text
//! colour = 'red' AND size > 5     load colour │ text red │ compare = │ skip 4 if false
//!                                 load size │ number 5 │ compare > │ and
//! ```

use super::like::Pattern;
use super::value::{Arithmetic, Comparison, Fact, and, compare, compute, or};
use ringpost_wire::limits::{FILTER_DEPTH_MAX, FILTER_LIKE_BYTES_MAX};

/// Most values on the stack: every operator that is open holds at most two, and there are no more
/// open ones than an expression nests deep.
pub(super) const STACK_MAX: usize = 2 * FILTER_DEPTH_MAX + 1;
/// The stack of a run; one for all filters of a message.
pub(super) type Stack<'a> = [Fact<'a>; STACK_MAX];

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Step {
    /// The value of a field, by its slot.
    Load(u32),
    Constant(Constant),
    Negate,
    Compute(Arithmetic),
    Compare(Comparison),
    IsNull,
    /// Of three values whether the first is between the others.
    Between,
    /// Whether the value is one of these constants: from and to.
    In(u32, u32),
    /// By the pattern of this number.
    Like(u32),
    Not,
    And,
    Or,
    /// What is true already stays so: goes on at this step.
    SkipIfTrue(u32),
    SkipIfFalse(u32),
}

#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Constant {
    Bool(bool),
    Int(i64),
    Float(f64),
    /// From and to in the program's texts.
    Text(u32, u32),
}

#[derive(Debug)]
pub(super) struct Program {
    pub steps: Box<[Step]>,
    pub constants: Box<[Constant]>,
    pub texts: Box<[u8]>,
    pub patterns: Box<[Pattern]>,
}

impl Program {
    /// Whether the filter is true of a message with these values; null is not.
    pub fn holds<'a>(&'a self, values: &[Fact<'a>], stack: &mut Stack<'a>) -> bool {
        let mut top = 0;
        let mut at = 0;
        while let Some(step) = self.steps.get(at) {
            at += 1;
            match *step {
                Step::Load(slot) => {
                    stack[top] = values[slot as usize];
                    top += 1;
                }
                Step::Constant(constant) => {
                    stack[top] = self.fact(constant);
                    top += 1;
                }
                Step::Negate => {
                    stack[top - 1] = match stack[top - 1] {
                        Fact::Int(number) => number.checked_neg().map_or(Fact::Null, Fact::Int),
                        Fact::Float(number) => Fact::Float(-number),
                        _ => Fact::Null,
                    };
                }
                Step::Compute(by) => {
                    top -= 1;
                    stack[top - 1] = compute(by, stack[top - 1], stack[top]);
                }
                Step::Compare(by) => {
                    top -= 1;
                    let truth = compare(by, stack[top - 1], stack[top]);
                    stack[top - 1] = Fact::of_truth(truth);
                }
                Step::IsNull => stack[top - 1] = Fact::Bool(stack[top - 1] == Fact::Null),
                Step::Between => {
                    top -= 2;
                    let value = stack[top - 1];
                    let truth = and(
                        compare(Comparison::AtLeast, value, stack[top]),
                        compare(Comparison::AtMost, value, stack[top + 1]),
                    );
                    stack[top - 1] = Fact::of_truth(truth);
                }
                Step::In(from, to) => {
                    let value = stack[top - 1];
                    let mut truth = match value {
                        Fact::Null => None,
                        _ => Some(false),
                    };
                    for constant in &self.constants[from as usize..to as usize] {
                        truth = or(
                            truth,
                            compare(Comparison::Equal, value, self.fact(*constant)),
                        );
                    }
                    stack[top - 1] = Fact::of_truth(truth);
                }
                Step::Like(pattern) => {
                    let truth = match stack[top - 1] {
                        Fact::Null => None,
                        Fact::Text(text) if text.len() > FILTER_LIKE_BYTES_MAX => None,
                        Fact::Text(text) => Some(self.patterns[pattern as usize].matches(text)),
                        _ => Some(false),
                    };
                    stack[top - 1] = Fact::of_truth(truth);
                }
                Step::Not => {
                    let truth = stack[top - 1].truth().map(|truth| !truth);
                    stack[top - 1] = Fact::of_truth(truth);
                }
                Step::And => {
                    top -= 1;
                    let mut left = stack[top - 1].truth();
                    if crate::mutant!(UnknownIsTrue) {
                        left = left.or(Some(true));
                    }
                    stack[top - 1] = Fact::of_truth(and(left, stack[top].truth()));
                }
                Step::Or => {
                    top -= 1;
                    let truth = or(stack[top - 1].truth(), stack[top].truth());
                    stack[top - 1] = Fact::of_truth(truth);
                }
                Step::SkipIfTrue(to) => {
                    if stack[top - 1] == Fact::Bool(true) {
                        at = to as usize;
                    }
                }
                Step::SkipIfFalse(to) => {
                    if stack[top - 1] == Fact::Bool(false) {
                        at = to as usize;
                    }
                }
            }
        }
        stack[0] == Fact::Bool(true)
    }

    fn fact(&self, constant: Constant) -> Fact<'_> {
        match constant {
            Constant::Bool(value) => Fact::Bool(value),
            Constant::Int(number) => Fact::Int(number),
            Constant::Float(number) => Fact::Float(number),
            Constant::Text(from, to) => Fact::Text(&self.texts[from as usize..to as usize]),
        }
    }
}
