//! What a row of rates says: where latency starts to rise steeply (the knee), and how much the broker
//! takes at all (saturation). Does not run anything.

use serde::{Deserialize, Serialize};

/// Least distance of the knee from the straight line, of 1.
const BEND_MIN: f64 = 0.1;
/// A run that achieves less than this share of its rate is beyond saturation.
pub const ACHIEVED_MIN: f64 = 0.97;

/// One rate.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Messages a second that were due.
    pub offered: f64,
    /// Messages a second that were published, confirmed and delivered: the least of these.
    pub achieved: f64,
    /// p99 of the response time in ns, end to end or of the confirm if nobody consumes.
    pub p99_ns: f64,
}

impl Point {
    /// Whether the broker did not follow.
    #[must_use]
    pub fn is_saturated(&self) -> bool {
        self.achieved < self.offered * ACHIEVED_MIN
    }
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The rate before the steep part of the curve; none if it does not bend.
    pub knee: Option<Point>,
    /// The most that was achieved.
    pub saturation: f64,
    /// Whether a rate was tried that the broker did not follow; else it may take more.
    pub is_reached: bool,
}

/// Looks at the points.
#[must_use]
pub fn find(points: &[Point]) -> Option<Found> {
    let mut sorted = points.to_vec();
    sorted.sort_by(|a, b| a.offered.total_cmp(&b.offered));
    let most = sorted
        .iter()
        .map(|point| point.achieved)
        .fold(f64::NAN, f64::max);
    if sorted.is_empty() {
        return None;
    }
    Some(Found {
        knee: knee(&sorted).map(|at| sorted[at]),
        saturation: most,
        is_reached: sorted.iter().any(Point::is_saturated),
    })
}

/// The point that is furthest below the straight line from the first point to the last one, with the
/// rate and the logarithm of the p99 both scaled to 0 to 1 (Satopää et al., "Finding a Kneedle in a
/// Haystack"). Of points beyond saturation only the first counts: how bad it gets there depends on
/// how long one waits.
fn knee(sorted: &[Point]) -> Option<usize> {
    let last = sorted
        .iter()
        .position(Point::is_saturated)
        .unwrap_or(sorted.len().checked_sub(1)?);
    let points = &sorted[..=last];
    let height = |point: &Point| point.p99_ns.max(1.0).ln();
    let (low, high) = (points.first()?, points.last()?);
    let (width, rise) = (high.offered - low.offered, height(high) - height(low));
    if points.len() < 3 || width <= 0.0 || rise <= 0.0 {
        return None;
    }
    let bend = |point: &Point| {
        (point.offered - low.offered) / width - (height(point) - height(low)) / rise
    };
    let inner = 1..points.len() - 1;
    let found = inner.max_by(|a, b| bend(&points[*a]).total_cmp(&bend(&points[*b])))?;
    (bend(&points[found]) >= BEND_MIN).then_some(found)
}

/// The next rate to try: `factor` times the highest as long as the broker follows; then, twice, half
/// way (by ratio) between the highest that it follows and the lowest that it does not.
#[must_use]
pub fn next_rate(points: &[Point], factor: f64, halvings: u32) -> Option<f64> {
    let followed = points.iter().filter(|point| !point.is_saturated());
    let highest = followed.map(|point| point.offered).fold(0.0, f64::max);
    let beyond = points.iter().filter(|point| point.is_saturated());
    let lowest = beyond
        .map(|point| point.offered)
        .fold(f64::INFINITY, f64::min);
    if lowest.is_infinite() {
        return Some(highest * factor);
    }
    let after_first = points
        .iter()
        .position(Point::is_saturated)
        .map_or(0, |at| points.len() - 1 - at);
    let is_more = after_first < halvings as usize && highest > 0.0 && lowest > highest;
    is_more.then(|| (highest * lowest).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One server with random arrivals and work: the p99 of the time in the system is
    /// ln(100) / (capacity - rate).
    fn queue(capacity: f64, rates: &[f64]) -> Vec<Point> {
        let point = |rate: &f64| Point {
            offered: *rate,
            achieved: rate.min(capacity),
            p99_ns: if *rate < capacity {
                1e9 * 100f64.ln() / (capacity - rate)
            } else {
                5e9
            },
        };
        rates.iter().map(point).collect()
    }

    #[test]
    fn the_knee_of_a_queue_lies_before_its_wall() {
        let rates: Vec<_> = (1..=20).map(|step| 50_000.0 * f64::from(step)).collect();
        let found = find(&queue(910_000.0, &rates)).expect("points");
        let knee = found.knee.expect("it bends").offered;
        assert!((650_000.0..=900_000.0).contains(&knee), "{knee}");
        assert_eq!((found.saturation, found.is_reached), (910_000.0, true));
    }

    #[test]
    fn a_hockey_stick_bends_at_its_heel() {
        let point = |offered: f64, p99_us: f64| Point {
            offered,
            achieved: offered,
            p99_ns: p99_us * 1e3,
        };
        let points = [
            point(30.0, 105.0),
            point(10.0, 100.0),
            point(20.0, 102.0),
            point(60.0, 120_000.0),
            point(40.0, 110.0),
            point(50.0, 1_500.0),
        ];
        let found = find(&points).expect("points");
        assert_eq!(found.knee.map(|knee| knee.offered), Some(40.0));
        assert!(!found.is_reached);
    }

    #[test]
    fn what_does_not_bend_has_no_knee() {
        let straight: Vec<_> = (1..10)
            .map(|step| Point {
                offered: f64::from(step),
                achieved: f64::from(step),
                p99_ns: f64::from(step).exp() * 1e3,
            })
            .collect();
        assert_eq!(find(&straight).expect("points").knee, None);
        assert_eq!(find(&straight[..2]).expect("points").knee, None);
        assert_eq!(find(&[]), None);
    }

    #[test]
    fn rates_go_up_until_the_broker_does_not_follow_and_then_close_in() {
        let capacity = 1_000.0;
        let mut points = queue(capacity, &[100.0]);
        while let Some(rate) = next_rate(&points, 2.0, 3) {
            points.extend(queue(capacity, &[rate]));
        }
        let rates: Vec<_> = points.iter().map(|point| point.offered.round()).collect();
        assert_eq!(
            rates,
            [100.0, 200.0, 400.0, 800.0, 1600.0, 1131.0, 951.0, 1037.0]
        );
    }
}
