// Export and copy.

function csvField(value) {
  const plain = value == null ? "" : String(value);
  // A spreadsheet would run a text that begins like this as a formula.
  const text = typeof value === "string" && /^'*[=+\-@\t\r]/.test(value) ? `'${plain}` : plain;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const WRITERS = {
  csv: ({ columns, rows }) => [columns, ...rows].map((row) => row.map(csvField).join(",")).join("\r\n") + "\r\n",
  json: ({ columns, rows }) =>
    JSON.stringify(rows.map((row) => Object.fromEntries(row.map((value, k) => [columns[k], value]))), null, 1),
};
const MIME = { csv: "text/csv;charset=utf-8", json: "application/json" };

/** The same names, numbered where one repeats: a feature may be called "score". */
function distinct(names) {
  return names.map((name, k) => {
    const before = names.slice(0, k).filter((other) => other === name).length;
    return before ? `${name} (${before + 1})` : name;
  });
}

function download({ name, columns, rows }, kind) {
  const file = `${name.replaceAll(/[^\p{L}\p{N}_-]+/gu, "-").slice(0, 60)}.${kind}`;
  const text = WRITERS[kind]({ columns: distinct(columns), rows });
  const address = URL.createObjectURL(new Blob([text], { type: MIME[kind] }));
  el("a", { href: address, download: file }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

function copyButton(textOf) {
  const button = el("button", { type: "button", onclick: async () => {
    const isCopied = await copy(textOf());
    button.textContent = isCopied ? "Copied" : "Select and copy by hand";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  } }, "Copy");
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.body.appendChild(el("textarea", { class: "unseen" }));
    area.value = text;
    area.select();
    const isCopied = document.execCommand("copy"); // where a page from the disk has no clipboard of its own
    area.remove();
    return isCopied;
  }
}
