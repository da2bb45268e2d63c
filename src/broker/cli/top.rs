//! `ringpost top`: what a broker does now, second by second. Asks the admin port for cores and stages
//! and, as any client would, for queues. Does not know how figures are drawn.

mod figures;
mod view;

use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ringpost_client::Client;
use tokio::time::Instant;

use super::admin_port::AdminArgs;
use super::link::{self, BrokerArgs};
use super::output;
use super::{Exit, Failure};
use crate::control::admin::Status;
use crate::control::admin::stages::Stages;
use crate::rt::{self, Signal, terminal};
use figures::{Figures, Order, Queues, Sample};

const EXAMPLES: &str = "\
Keys:
  q  ends it          p  holds the picture, and lets it go again
  s  sorts queues: by rate, by waiting messages, by name
  j, k or arrows move through the queues

Rates and percentiles are those of the last interval. The stages of a message
are described in docs/operations.md. If standard output is no terminal, pictures
are printed as text, one after the other.

Examples:
  ringpost top
  ringpost top --interval 5s
  ringpost top --count 1 | less";

/// Watch a running broker: rates, queues, latencies by stage
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    broker: BrokerArgs,
    /// How long between two pictures: 100ms to 1h
    #[arg(long, value_name = "duration", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// End after so many pictures
    #[arg(long, value_name = "number", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

/// How often keys and signals are looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// Reads the interval from the command line.
fn interval(text: &str) -> Result<Duration, String> {
    let span = link::span(text)?;
    let bounds = Duration::from_millis(100)..=Duration::from_secs(3_600);
    if bounds.contains(&span) {
        Ok(span)
    } else {
        Err("from 100ms to 1h".into())
    }
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Failure> {
    let no_signals = |error| Failure::failed(format!("cannot wait for signals: {error}"));
    rt::block_termination_signals().map_err(no_signals)?;
    let signals = rt::spawn_signal_thread().map_err(no_signals)?;
    let watch = Watch {
        args,
        signals,
        client: None,
    };
    if terminal::output_columns().is_none() {
        return link::block_on(watch.print());
    }
    let mut screen = ratatui::try_init()
        .map_err(|error| Failure::failed(format!("cannot draw on this terminal: {error}")))?;
    let outcome = link::block_on(watch.show(&mut screen));
    ratatui::restore();
    outcome
}

/// A broker that is watched.
struct Watch {
    args: Args,
    signals: flume::Receiver<Signal>,
    client: Option<Client>,
}

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    End,
    Hold,
    Sort,
    Move(isize),
    Redraw,
}

impl Watch {
    /// Everything that is known of the broker now.
    ///
    /// # Errors
    /// The admin port does not answer. A port for clients that does not is shown, no more.
    async fn sample(&mut self) -> Result<Sample, Failure> {
        let status = self.args.admin.get("/status")?;
        let status: Status = self.args.admin.parse(&status)?;
        let stages = self.args.admin.get("/stages")?;
        let stages: Stages = self.args.admin.parse(&stages)?;
        let queues = self.queues().await;
        Ok(Sample::new(
            std::time::Instant::now(),
            status,
            &stages,
            queues,
        ))
    }

    /// The same of a broker that has answered before: one that does not now may come back.
    async fn next(&mut self) -> Result<Result<Sample, String>, Failure> {
        match self.sample().await {
            Ok(sample) => Ok(Ok(sample)),
            Err(failure) if failure.exit == Exit::Unreachable => {
                let why = failure.sentence.split(';').next().unwrap_or_default();
                Ok(Err(format!("{why}; waiting for it to come back")))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn queues(&mut self) -> Queues {
        let client = match self.client.take() {
            Some(client) => client,
            None => match self.args.broker.connect().await {
                Ok(client) => client,
                Err(failure) => return Queues::Unknown(failure.sentence),
            },
        };
        match client.queues().await {
            Ok(queues) => {
                self.client = Some(client);
                Queues::Known(queues)
            }
            Err(error) => Queues::Unknown(Failure::from(error).sentence),
        }
    }

    /// Prints pictures as text.
    async fn print(mut self) -> Result<(), Failure> {
        let mut before = self.sample().await?;
        let mut left = self.args.count;
        while left != Some(0) {
            self.pause().await?;
            match self.next().await? {
                Ok(now) => {
                    let figures = Figures::between(&before, &now, Order::Rate);
                    output::write_all(view::text(&figures).as_bytes())?;
                    before = now;
                }
                Err(why) => output::line(&why)?,
            }
            left = left.map(|left| left - 1);
        }
        self.close().await
    }

    /// Waits for the next picture.
    async fn pause(&self) -> Result<(), Failure> {
        let until = Instant::now() + self.args.interval;
        while Instant::now() < until {
            self.heed_signals()?;
            tokio::time::sleep_until(until.min(Instant::now() + GLANCE)).await;
        }
        Ok(())
    }

    fn heed_signals(&self) -> Result<(), Failure> {
        match self.signals.try_recv() {
            Ok(signal) => Err(Failure::new(signal.into(), "")),
            Err(_) => Ok(()),
        }
    }

    /// Draws on a terminal until it is told to end.
    async fn show(mut self, screen: &mut ratatui::DefaultTerminal) -> Result<(), Failure> {
        let mut first = 0;
        let mut is_held = false;
        let mut before = self.sample().await?;
        let mut figures = Figures::between(&before, &before, Order::Rate);
        let mut next = Instant::now() + self.args.interval;
        let mut left = self.args.count;
        screen.draw(|frame| view::draw(frame, &figures, &mut first, is_held))?;
        loop {
            self.heed_signals()?;
            let mut is_changed = false;
            while event::poll(Duration::ZERO)? {
                match wish(&event::read()?) {
                    Some(Wish::End) => return self.close().await,
                    Some(Wish::Hold) => is_held = !is_held,
                    Some(Wish::Sort) => figures.sort(figures.order.next()),
                    Some(Wish::Move(rows)) => first = first.saturating_add_signed(rows),
                    Some(Wish::Redraw) => {}
                    None => continue,
                }
                is_changed = true;
            }
            if Instant::now() >= next {
                next = Instant::now() + self.args.interval;
                if !is_held {
                    match self.next().await? {
                        Ok(now) => {
                            figures = Figures::between(&before, &now, figures.order);
                            before = now;
                        }
                        Err(why) => figures.reasons = vec![why],
                    }
                    is_changed = true;
                    left = left.map(|left| left - 1);
                }
            }
            if is_changed {
                screen.draw(|frame| view::draw(frame, &figures, &mut first, is_held))?;
            }
            if left == Some(0) {
                return self.close().await;
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    async fn close(self) -> Result<(), Failure> {
        match self.client {
            Some(client) => Ok(client.close().await?),
            None => Ok(()),
        }
    }
}

fn wish(event: &Event) -> Option<Wish> {
    let key = match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        Event::Resize(..) => return Some(Wish::Redraw),
        _ => return None,
    };
    match key {
        KeyEvent {
            code: KeyCode::Char('c'),
            modifiers,
            ..
        } if modifiers.contains(KeyModifiers::CONTROL) => Some(Wish::End),
        KeyEvent { code, .. } => match code {
            KeyCode::Char('q') | KeyCode::Esc => Some(Wish::End),
            KeyCode::Char('p' | ' ') => Some(Wish::Hold),
            KeyCode::Char('s') => Some(Wish::Sort),
            KeyCode::Char('j') | KeyCode::Down => Some(Wish::Move(1)),
            KeyCode::Char('k') | KeyCode::Up => Some(Wish::Move(-1)),
            KeyCode::PageDown => Some(Wish::Move(20)),
            KeyCode::PageUp => Some(Wish::Move(-20)),
            KeyCode::Home => Some(Wish::Move(isize::MIN)),
            KeyCode::Char('r') => Some(Wish::Redraw),
            _ => None,
        },
    }
}
