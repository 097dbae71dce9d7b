#include "artifact.hpp"

#include <filesystem>
#include <fstream>
#include <map>
#include <stdexcept>
#include <vector>

#include "sha256.hpp"

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr std::uintmax_t kMaxManifestBytes = 16 << 20;

// The file of that name in the folder; a name or a link that leads outside is refused.
fs::path inside(const fs::path& folder, const std::string& name) {
    const fs::path path = fs::weakly_canonical(folder / name), root = fs::canonical(folder);
    const auto tail = path.lexically_relative(root);
    if (tail.empty() || *tail.begin() == ".." || name.find('\\') != std::string::npos)
        throw std::runtime_error("'" + name + "' leads outside of the artifact folder; refused");
    if (!fs::is_regular_file(path)) throw std::runtime_error("'" + name + "' is missing; copy the whole artifact folder");
    return path;
}

}  // namespace

json read_manifest(const std::string& folder) {
    const fs::path path = fs::path(folder) / "manifest.json";
    if (!fs::is_regular_file(path))
        throw std::runtime_error(folder + " has no manifest.json; give the folder that `edgemim export` wrote");
    if (fs::file_size(path) > kMaxManifestBytes) throw std::runtime_error(path.string() + " is too large for a manifest");
    std::ifstream stream(path);
    json manifest = json::parse(stream, nullptr, false);
    if (!manifest.is_object()) throw std::runtime_error(path.string() + " holds no JSON object; export it again");
    return manifest;
}

std::string checked_model(const std::string& folder, const json& manifest, const std::string& asked) {
    const json& files = manifest.at("files");
    const auto keys = asked.empty() ? std::vector<std::string>{"openvino-int8", "openvino-fp32", "onnx-fp32"}
                                    : std::vector<std::string>{asked};
    for (const auto& key : keys) {
        if (!files.contains(key)) continue;
        const json& entry = files.at(key);
        const std::string path = entry.at("path");
        auto hashes = entry.value("companions", std::map<std::string, std::string>{});
        const bool listed = hashes.count(fs::path(path).replace_extension(".bin").generic_string()) > 0;
        if (entry.at("format") == "openvino" && !listed)
            throw std::runtime_error("the manifest lists no weights of '" + path + "'; export it again");
        hashes[path] = entry.at("sha256");
        for (const auto& [name, expected] : hashes)
            if (sha256_of(inside(folder, name)) != expected)
                throw std::runtime_error("'" + name + "' is not the file that was exported; copy the artifact again");
        return inside(folder, path).string();
    }
    throw std::runtime_error("the artifact has no model '" + (asked.empty() ? keys.back() : asked) + "'");
}
