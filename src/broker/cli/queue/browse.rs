//! `ringpost queue browse` and `queue cancel`: messages of a queue where they are. Does not consume.

use ringpost_client::{Browse, Browsed, Client, Headers, MessageState};
use serde::Serialize;

use crate::cli::Failure;
use crate::cli::message::{as_text_or_hex, json_of_headers};
use crate::cli::output::{self, FormatArgs};

/// Bytes of a payload that a table shows.
const SHOWN_BYTES: usize = 60;
/// Most messages that are named at a time.
const NAMED: usize = 1_024;

/// How messages stand that are asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum State {
    /// Ready for delivery
    Ready,
    /// Waiting for their time
    Delayed,
    /// Held by a consumer
    Unacked,
    /// On their way to the dead-letter exchange, or being moved
    Dead,
    /// Ready, and waiting for their key in a queue with message groups
    Grouped,
}

impl State {
    const fn of_client(self) -> MessageState {
        match self {
            Self::Ready => MessageState::Ready,
            Self::Delayed => MessageState::Delayed,
            Self::Unacked => MessageState::Unacked,
            Self::Dead => MessageState::Dead,
            Self::Grouped => MessageState::Grouped,
        }
    }
}

/// What is shown.
#[derive(clap::Args, Debug)]
pub struct BrowseArgs {
    /// The queue
    name: String,
    /// Most messages to show
    #[arg(long, value_name = "number", default_value_t = 20)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Begin at this place in the queue [default: its head]
    #[arg(
        long,
        value_name = "place",
        default_value_t = 0,
        hide_default_value = true
    )]
    from: u64,
    /// Only messages that stand so; may be given more than once
    #[arg(long = "state", value_enum, value_name = "state")]
    states: Vec<State>,
    /// Only messages for which this condition holds, as of a filter binding
    #[arg(long, value_name = "condition")]
    filter: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
}

/// A message as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    place: u64,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    due_ms: Option<u64>,
    deliveries: u32,
    /// Who holds it: connection, core, channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<Holder>,
    bytes: u32,
    cut: bool,
    exchange: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    priority: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    headers: serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Holder {
    connection: u64,
    core: u16,
    channel: u16,
}

fn ms(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl Row {
    fn of(message: &Browsed) -> Self {
        let (key, key_hex) = as_text_or_hex(&message.routing_key());
        let (payload, payload_hex) = as_text_or_hex(&message.payload());
        let headers: Headers = message.headers();
        Self {
            place: message.place(),
            state: message.state().word(),
            due_ms: message.due_in().map(ms),
            deliveries: message.delivery_count(),
            holder: message.holder().map(|(connection, core, channel)| Holder {
                connection,
                core,
                channel,
            }),
            bytes: message.message_bytes(),
            cut: message.is_cut(),
            exchange: message.exchange(),
            key,
            key_hex,
            priority: message.priority(),
            ttl_ms: message.ttl().map(ms),
            headers: json_of_headers(&headers),
            payload,
            payload_hex,
        }
    }

    fn payload_text(&self) -> String {
        let text = match (&self.payload, &self.payload_hex) {
            (Some(text), _) => text.clone(),
            (None, Some(hex)) => format!("0x{hex}"),
            (None, None) => String::new(),
        };
        let plain: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        match plain.char_indices().nth(SHOWN_BYTES) {
            Some((at, _)) => format!("{}...", &plain[..at]),
            None if self.cut => format!("{plain}..."),
            None => plain,
        }
    }
}

const HEADS: [&str; 7] = [
    "place",
    "state",
    "deliveries",
    "bytes",
    "key",
    "headers",
    "payload",
];

fn cells(row: &Row) -> Vec<String> {
    let state = match (row.due_ms, row.holder) {
        (Some(due_ms), _) => format!("{}, due in {due_ms} ms", row.state),
        (_, Some(holder)) => format!(
            "{} by connection {}, channel {}",
            row.state, holder.connection, holder.channel
        ),
        _ => row.state.to_owned(),
    };
    let headers = match row.headers.is_empty() {
        true => String::new(),
        false => serde_json::Value::Object(row.headers.clone()).to_string(),
    };
    vec![
        row.place.to_string(),
        state,
        row.deliveries.to_string(),
        row.bytes.to_string(),
        row.key.clone().or(row.key_hex.clone()).unwrap_or_default(),
        headers,
        row.payload_text(),
    ]
}

/// Shows messages of a queue.
pub async fn browse(client: &Client, args: &BrowseArgs) -> Result<(), Failure> {
    let mut rows = Vec::new();
    let mut from = args.from;
    while (rows.len() as u64) < args.count {
        let left = args.count - rows.len() as u64;
        let mut asked = Browse::from(from).messages_max(left.min(256) as u32);
        for state in &args.states {
            asked = asked.state(state.of_client());
        }
        if let Some(filter) = &args.filter {
            asked = asked.filter(filter);
        }
        let page = client.browse(&args.name, &asked).await?;
        rows.extend(page.messages.iter().map(Row::of));
        let Some(next) = page.next else { break };
        from = next;
    }
    output::rows(args.format, &HEADS, &rows, cells)
}

/// What is cancelled.
#[derive(clap::Args, Debug)]
pub struct CancelArgs {
    /// The queue
    name: String,
    /// The places of the messages in the queue, as `browse` shows them
    #[arg(value_name = "place", required_unless_present = "message_id")]
    places: Vec<u64>,
    /// Those with this message id among their properties instead
    #[arg(long, value_name = "id", conflicts_with = "places")]
    message_id: Option<String>,
}

/// Takes delayed messages back.
pub async fn cancel(client: &Client, args: &CancelArgs) -> Result<(), Failure> {
    let mut places = args.places.clone();
    if let Some(id) = &args.message_id {
        let condition = format!("sys.message_id = '{}'", id.replace('\'', "''"));
        let mut from = Some(0);
        while let Some(place) = from {
            let asked = Browse::from(place)
                .state(MessageState::Delayed)
                .message_bytes_max(1)
                .filter(&condition);
            let page = client.browse(&args.name, &asked).await?;
            places.extend(page.messages.iter().map(Browsed::place));
            from = page.next;
        }
        if places.is_empty() {
            return Err(Failure::failed(format!(
                "no delayed message of {} has the message id {id}: it was delivered, or never there",
                args.name
            )));
        }
    }
    let (mut done, mut late) = (0, 0);
    for some in places.chunks(NAMED) {
        let outcome = client.cancel_messages(&args.name, some).await?;
        done += u64::from(outcome.done);
        late += u64::from(outcome.late + outcome.busy);
    }
    if done > 0 {
        output::line(&format!("{} cancelled", output::counted(done, "message")))?;
    }
    if late > 0 {
        return Err(Failure::failed(format!(
            "too late for {}: not delayed any more, or never there",
            output::counted(late, "message")
        )));
    }
    Ok(())
}
